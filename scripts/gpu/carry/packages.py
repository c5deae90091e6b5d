"""What the prepared machine has, and what a run needs beside it."""

from __future__ import annotations

# Of the image there, as far as a run needs them; versions where they are known.  Rehearsals install these.
IMAGE = {
    "accelerate": "1.15.0",
    "cmake": None,
    "cuda-bindings": None,
    "filelock": None,
    "huggingface-hub": "1.33.0",
    "jinja2": None,
    "ml-dtypes": None,
    "ninja": None,
    "numpy": "2.5.2",
    "onnx": "1.23.1",
    "onnx-ir": "1.0.0",
    "onnxruntime": "1.30.0",
    "onnxscript": "0.7.2",
    "packaging": None,
    "pillow": None,
    "psutil": None,
    "safetensors": "0.8.0",
    "setuptools": None,
    "tokenizers": "0.23.2",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "tqdm": None,
    "transformers": "5.17.0",
    "wheel": None,
}
# Not in the image; small.
SMALL = ("msgspec==0.22.0",)
# In the image without CUDA, and too old.
ONNXRUNTIME = "onnxruntime-gpu==1.31.1"
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
