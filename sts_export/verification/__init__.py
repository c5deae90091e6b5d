"""Bundles against the PyTorch reference, engines against ONNX Runtime."""
