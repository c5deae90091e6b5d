"""CUDA and TensorRT for a machine without a GPU: strict where the real ones would only misbehave."""
