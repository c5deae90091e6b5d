"""The ONNX graphs as code: vision encoder, selector, LLM-lower and LLM-upper, and the blocks they share.

Graphs are built directly with ``onnxscript.nn`` (no tracing, no torch).  A graph's parameters carry the checkpoint's
tensor names and no data; whoever exports binds the data.  This package knows nothing of files or runtimes.
"""
