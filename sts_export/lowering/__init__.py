"""Graphs rewritten for one engine: ONNX Runtime's own operators, older TensorRT, quantized weights."""
