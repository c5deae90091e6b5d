"""The graphs on ONNX Runtime."""
