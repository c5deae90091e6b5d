"""The same bundle in a real Triton Inference Server, under the same load."""
