"""The model repository that `sts-export triton` writes: a bundle, and all that is needed to serve it by Triton."""
