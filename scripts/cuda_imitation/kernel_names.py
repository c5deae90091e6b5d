"""Mangled names of CUDA kernels, short enough to read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scripts.cuda_imitation.programs import output

# What an element-wise kernel computes stands among its template arguments.
_OPERATION = re.compile(r"\bOP_(\w+(?:<[\w, ]+>)?)")
_FUNCTION = re.compile(r"(?:void )?(?:\w+::)*(\w+)[<(]")


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Mangled -> short, such as ``_BinaryElementWise Add<float, float, float>`` or ``GatherKernel``; functions' names stay."""
    names = list(mangled)
    demangled = output(["c++filt"], given="\n".join(names)).splitlines()
    return {name: _shortened(text) for name, text in zip(names, demangled, strict=True)}


def _shortened(text: str) -> str:
    function = _FUNCTION.match(text.replace("(anonymous namespace)::", ""))
    name = function[1] if function else text
    return " ".join([name, *dict.fromkeys(_OPERATION.findall(text))])
