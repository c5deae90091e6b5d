"""The part that compares ways to run one bundle on ONNX Runtime CUDA."""
