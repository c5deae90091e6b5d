"""ONNX Runtime's CUDA provider on an imitation of the CUDA libraries: what it asks of a GPU is counted, and nothing is computed.

    python -m scripts.cuda_imitation BUNDLE --onnxruntime-gpu FOLDER

The imitation is one library under the names of all that the provider loads.  Memory is the host's, copies are made, kernels do
nothing: all that is computed on the GPU is zeros or what lay there before.  So a run says how many kernels, copies and
synchronizations a graph takes, and says nothing of results or of time.
"""
