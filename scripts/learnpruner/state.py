"""A training that was stopped, in one .safetensors file: tensors, and as its metadata the step and what is trained as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scripts.learnpruner.scorer import Scorer
from sts_export.errors import RequestError
from sts_export.files import replace_file

MOMENTS = ("exp_avg", "exp_avg_sq")


def write_state(file: Path, scorer: Scorer, optimizer: torch.optim.Optimizer, step: int, identity: Mapping[str, Any]) -> None:
    """After ``step`` steps.  A process that is killed leaves the old file or the new one."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in scorer.state_dict().items()}
    for name, parameter in scorer.named_parameters():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    replace_file(file, save(tensors, {"training": json.dumps({"step": step, "identity": dict(identity)})}))


def read_state(file: Path, scorer: Scorer, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]) -> int:
    """Put the state into both; the steps that were done, 0 without a file.

    Raises:
        RequestError: a damaged file, or the state of another training.
    """
    if not file.is_file():
        return 0
    try:
        with safe_open(file, "pt") as opened:
            record = json.loads(opened.metadata()["training"])
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        step, was = int(record["step"]), dict(record["identity"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise RequestError(f"{file} is no state of a training; delete it to begin anew") from None
    if differing := sorted(key for key in {*was, *identity} if was.get(key) != identity.get(key)):
        raise RequestError(
            f"{file} is the state of a training with another {', '.join(differing)}; "
            "delete it to begin anew, or choose another --output"
        )
    scorer.load_state_dict({name: tensors[name] for name in scorer.state_dict()})
    for name, parameter in scorer.named_parameters():
        moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(step), device="cpu"), **moments}
    return step
