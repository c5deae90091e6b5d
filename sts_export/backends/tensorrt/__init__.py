"""The graphs on TensorRT and TensorRT for RTX."""
