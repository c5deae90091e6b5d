"""Engines that run the graphs of a bundle: ONNX Runtime on CPU and CUDA, TensorRT, TensorRT for RTX."""
