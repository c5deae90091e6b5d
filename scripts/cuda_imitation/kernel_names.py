"""Mangled names of CUDA kernels, short enough to read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

# What an element-wise kernel computes stands among its template arguments.
_OPERATION = re.compile(r"\bOP_(\w+(?:<[\w, ]+>)?)")
_NAMESPACES = re.compile(r"(?:\w+::|\(anonymous namespace\)::)+")


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Mangled -> short, such as ``_BinaryElementWiseSimple Add`` or ``GatherKernel``; names of functions stay."""
    names = list(mangled)
    demangled = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return {name: _shortened(text) for name, text in zip(names, demangled.stdout.splitlines(), strict=True)}


def _shortened(text: str) -> str:
    head = text.removeprefix("void ").split("<")[0].split("(")[0] if not text.startswith("void (") else text
    name = _NAMESPACES.sub("", head).strip() or text[:80]
    operations = list(dict.fromkeys(_OPERATION.findall(text)))
    return " ".join([name, *operations])
