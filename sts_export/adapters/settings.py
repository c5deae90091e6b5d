"""adapter_config.json of a plain LoRA adapter: how its factors are scaled, and what it was trained on.

Which modules have factors is told by the weight file alone: target_modules, exclude_modules and layers_to_transform decided
it when the adapter was made, and peft saves the factors of exactly those modules.
Source: peft ``tuners/lora/config.py`` and ``LoraModel._create_and_replace``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sts_export.checkpoints.checkpoint import ADAPTER_CONFIG, read_json
from sts_export.errors import CheckpointError

# What a merge does not depend on.  fan_in_fan_out is for Conv1D layers; peft itself turns it off for Linear ones, which are
# all that these families have.
_WITHOUT_EFFECT = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "runtime_config", "lora_dropout"),
    *("base_model_name_or_path", "revision", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying", "init_lora_weights"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
# The other initializations change the base weights, which the adapter then expects.
_INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
Number = TypeVar("Number", int, float)
_TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")


@dataclass(frozen=True)
class LoraSettings:
    """What adapter_config.json says of a plain LoRA.

    Args:
        rank, alpha: where no pattern matches.
        rank_pattern, alpha_pattern: regular expression for the end of a module's name -> its own number.
        rank_stabilized: alpha over the square root of the rank, instead of over the rank.
        base: folder or hub id (with ``@revision``) of the model that was trained on.
    """

    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rank_stabilized: bool
    base: str | None

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors, named as in the adapter."""
        return _matching(self.rank_pattern, module, self.rank)

    def scaling(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        alpha, rank = _matching(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank


def read_settings(folder: Path) -> LoraSettings:
    """adapter_config.json of ``folder``.

    Raises:
        CheckpointError: another kind of adapter, a setting that changes how factors and weights combine, or no numbers.
    """
    file = folder / ADAPTER_CONFIG
    config = read_json(file)
    _check_plain(config, file)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    try:
        settings = LoraSettings(
            rank=_whole(config.get("r", 8)),
            alpha=_number(config.get("lora_alpha", 8)),
            rank_pattern={_pattern(key): _whole(value) for key, value in (config.get("rank_pattern") or {}).items()},
            alpha_pattern={_pattern(key): _number(value) for key, value in (config.get("alpha_pattern") or {}).items()},
            rank_stabilized=bool(config.get("use_rslora")),
            base=_revised(base, revision) if isinstance(base, str) and base else None,
        )
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(f"{file} has an impossible value ({error}); download or copy it again") from None
    return settings


def _check_plain(config: dict[str, Any], file: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _unsupported(file, f"peft_type {kind!r}")
    if config.get("task_type") not in _TASKS:
        raise _unsupported(file, f"task_type {config['task_type']!r}")
    if config.get("init_lora_weights") not in _INITIALIZATIONS:
        raise _unsupported(file, f"init_lora_weights {config['init_lora_weights']!r}")
    for name, value in config.items():
        if value and name not in _WITHOUT_EFFECT:
            raise _unsupported(file, name)


def _unsupported(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file} has {what}, but only plain LoRA adapters are merged; merge it with peft's merge_and_unload, save the model "
        "and export that"
    )


def _revised(base: str, revision: object) -> str:
    """A folder has no revisions."""
    return f"{base}@{revision}" if isinstance(revision, str) and revision and not Path(base).exists() else base


def _matching(patterns: dict[str, Number], module: str, default: Number) -> Number:
    """The number of the first pattern that matches the end of the name; Source: peft ``utils/other.py``, get_pattern_key."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _pattern(key: str) -> str:
    re.compile(key)
    return key


def _whole(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"rank {value!r}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"lora_alpha {value!r}")
    return float(value)
