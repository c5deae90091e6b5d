"""What ONNX Runtime's CUDA provider asks of a GPU, counted on an imitation of the CUDA libraries that computes nothing.

    python -m scripts.cuda_imitation BUNDLE            what the graphs of a bundle ask for, by kind and by kernel
    python -m scripts.cuda_imitation.recorded          counts the cases anew that tests compare with

The imitation is one library under the names of all that the provider loads.  Memory is the host's and copies are made; kernels
do nothing, and what comes back to the host is 0, 1, 2, ....  So a run says how many kernels, copies and synchronizations a
graph takes; it says nothing of results, nor of time.
"""
