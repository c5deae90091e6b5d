"""TensorRT and TensorRT for RTX: engines of a bundle, and what is needed to build and find them."""
