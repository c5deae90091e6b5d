"""Tensors of an adapter's file -> tensors of the checkpoint as they change.

Names of a LoRA file (peft ``get_peft_model_state_dict``), after the prefix ``base_model.model.``:

    X.lora_A.weight [r, in, ...], X.lora_B.weight [out, r, ...]       a Linear or convolution X
    X.lora_embedding_A [r, rows], X.lora_embedding_B [width, r]       an Embedding X
    X.base_layer.weight, X.base_layer.bias, X.weight, X.bias          take the place of the checkpoint's own

X is a module's name in the release that trained the adapter; the family knows which tensor it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from sts_export.adapters.checks import shared_matrix
from sts_export.adapters.settings import LoraSettings
from sts_export.checkpoints.checkpoint import Checkpoint
from sts_export.checkpoints.merged import FLOATS, LowRank, MergedTensor
from sts_export.checkpoints.safetensors_header import TensorEntry
from sts_export.errors import CheckpointError
from sts_export.families import family_of
from sts_export.families.family import Family

_PREFIX = "base_model.model."
_OTHER_BASE = "the adapter is of another model"
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
# Of which kinds of layers the two factors are, in the order of their product: rows by rank, rank by columns.
_LINEAR, _EMBEDDING = ("lora_B.weight", "lora_A.weight"), ("lora_embedding_A", "lora_embedding_B")


def merged_tensors(
    base: Checkpoint, settings: LoraSettings, entries: Mapping[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], frozenset[str]]:
    """The checkpoint's tensors under their stored names, as the adapter changes them.

    Returns:
        the tensors; the names in the graphs of those that changed.

    Raises:
        CheckpointError: a tensor of the adapter that fits no tensor of the checkpoint, or contradicts adapter_config.json.
    """
    family = family_of(base.config)
    stored = {family.canonical_name(name): name for name in base.tensors}
    factors, whole = _factors_and_whole(entries)
    tensors = dict(base.tensors)
    targets: dict[str, str] = {}
    for name, entry in whole.items():
        target = _target(name, entry, stored, family)
        if target in targets:
            raise CheckpointError(f"{targets[target]} and {entry.name} of the adapter are both {target}; save it again")
        targets[target] = entry.name
        own = tensors[stored[target]]
        if entry.shape != own.shape:
            raise CheckpointError(f"{_shown(entry)} is {list(entry.shape)} instead of {list(own.shape)}; {_OTHER_BASE}")
        tensors[stored[target]] = replace(entry, name=own.name)
    for module, parts in factors.items():
        target = _target(f"{module}.weight", next(iter(parts.values())), stored, family)
        own = tensors[stored[target]]
        if isinstance(own, MergedTensor):
            raise CheckpointError(f"{module} of the adapter and {own.delta.left.name} are both {target}; save it again")
        targets[target] = module
        tensors[stored[target]] = _merged(own, module, parts, settings)
    return tensors, frozenset(targets)


def _factors_and_whole(
    entries: Mapping[str, TensorEntry],
) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, TensorEntry]]:
    """Module -> its factors, and name -> a tensor that takes the place of the checkpoint's."""
    factors: dict[str, dict[str, TensorEntry]] = {}
    whole: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{_shown(entry)} is of type {entry.dtype}; save it in float32, float16 or bfloat16")
        short = name.removeprefix(_PREFIX)
        if factor := _FACTOR.fullmatch(short):
            factors.setdefault(factor["module"], {})[factor["part"]] = entry
        else:
            name = short.replace(".base_layer.", ".")
            if name in whole:
                raise CheckpointError(f"{whole[name].name} and {entry.name} of the adapter are both {name}; save it again")
            whole[name] = entry
    if not factors:
        raise CheckpointError("the adapter holds no LoRA factors; download or save it again")
    return factors, whole


def _shown(entry: TensorEntry) -> str:
    return f"{entry.name} of the adapter"


def _target(name: str, entry: TensorEntry, stored: Mapping[str, str], family: Family) -> str:
    """The name in the graphs of the tensor that ``entry`` changes."""
    if ".lora_" in name:
        raise CheckpointError(
            f"{_shown(entry)} is no factor of a plain LoRA; merge it with peft's merge_and_unload and export the result"
        )
    target = family.canonical_name(name)
    if target in stored:
        return target
    if target == f"{family.names.head}.weight":  # a shared matrix is stored as the embedding
        raise shared_matrix(target)
    raise CheckpointError(f"{_shown(entry)} fits no tensor of the model; {_OTHER_BASE}, or of a part of it")


def _merged(own: TensorEntry, module: str, parts: Mapping[str, TensorEntry], settings: LoraSettings) -> TensorEntry:
    kind = next((kind for kind in (_LINEAR, _EMBEDDING) if parts.keys() == set(kind)), None)
    if kind is None:
        there = next(iter(parts.values()))
        raise CheckpointError(f"{_shown(there)} lacks its other factor; download or save the adapter again")
    left, right = (parts[name] for name in kind)
    rank = settings.rank_of(module)
    if kind is _LINEAR:
        # Factors of a convolution have its dimensions; the window is the right one's alone.
        wanted = {left: (own.shape[0], rank, *[1] * (len(own.shape) - 2)), right: (rank, *own.shape[1:])}
        delta = LowRank(left, right, settings.scaling(module))
    else:
        wanted = {left: (rank, own.shape[0]), right: (*own.shape[1:], rank)}
        delta = LowRank(left, right, settings.scaling(module), left_transposed=True, right_transposed=True)
    for entry, shape in wanted.items():
        if len(own.shape) < 2 or entry.shape != shape:
            raise CheckpointError(
                f"{_shown(entry)} is {list(entry.shape)}, but rank {rank} of adapter_config.json and the model's "
                f"{own.name} {list(own.shape)} want {list(shape)}; {_OTHER_BASE}"
            )
    if own.dtype not in FLOATS:
        return own  # a type that no graph has is refused for itself
    return MergedTensor(own.name, own.file, own.dtype, own.shape, own.offset, own.nbytes, delta)
