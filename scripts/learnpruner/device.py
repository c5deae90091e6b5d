"""Devices of PyTorch that trainings run on."""

from __future__ import annotations

from sts_export.errors import RequestError


def check_device(name: str) -> None:
    """Raises RequestError for a device that PyTorch does not have here."""
    import torch

    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError, NotImplementedError):  # AssertionError: built without CUDA
        raise RequestError(f"--device {name} cannot be used here; choose cpu, or cuda where PyTorch finds a GPU") from None
