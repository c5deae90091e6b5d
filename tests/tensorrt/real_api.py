"""What a real TensorRT module has, as JSON; for a process of its own, whose libraries are open to all of it.

    python -m tests.tensorrt.real_api tensorrt_lean|tensorrt_rtx [libsts_plugins.so]

``tensorrt_lean`` is NVIDIA's own runtime without builder and parser, which loads on machines without a GPU.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

LEAN_PACKAGES = {
    "tensorrt_lean_libs": "tensorrt-lean-cu13-libs",
    "tensorrt_lean_bindings": "tensorrt-lean-cu13-bindings",
    "nvidia": "nvidia-cuda-runtime",
}


def missing(module: str) -> str | None:
    """The package that a module needs and this machine lacks."""
    wanted = LEAN_PACKAGES if module == "tensorrt_lean" else {"tensorrt_rtx": "tensorrt-rtx"}
    return next((package for name, package in wanted.items() if find_spec(name) is None), None)


def load(name: str) -> ModuleType:
    if name != "tensorrt_lean":
        return import_module(name)
    # The bindings link nothing: they take what the process has.
    for package, pattern in (("nvidia", "*/lib/libcudart.so.*"), ("tensorrt_lean_libs", "libnvinfer_lean.so.*")):
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None
        libraries = [file for folder in spec.submodule_search_locations for file in sorted(Path(folder).glob(pattern))]
        ctypes.CDLL(str(libraries[-1]), mode=ctypes.RTLD_GLOBAL)
    return import_module("tensorrt_lean_bindings")


def overloads(function: Any) -> list[list[tuple[str, bool]]]:
    """Parameters of each overload without ``self``, and whether each has a default; pybind11 writes them into the docstring."""
    found = []
    for arguments in re.findall(rf"^(?:\d+\. )?{function.__name__}\((.*)\) -> ", function.__doc__ or "", re.MULTILINE):
        depth, parts = 0, [""]
        for character in arguments:
            depth += (character in "([{<") - (character in ")]}>")
            if character == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += character
        names = [(part.split(":")[0].split("=")[0].strip(), " = " in part) for part in parts if part.strip()]
        if names != [("*args", False), ("**kwargs", False)]:
            found.append([pair for pair in names if pair[0] != "self"])
    return found


def members(one: Any) -> dict[str, Any]:
    """Of a class: an integer for a member of an enumeration, overloads of a method, None for any other attribute."""
    result: dict[str, Any] = {}
    for name in dir(one):
        value = getattr(one, name)
        if name.startswith("_"):
            continue
        if hasattr(type(value), "__members__"):
            result[name] = int(value)
        else:
            result[name] = overloads(value) if callable(value) and not isinstance(value, type) else None
    return result


def creators(trt: ModuleType, library: Path) -> list[dict[str, Any]]:
    """Loads the library as the package does, and makes a plugin of every creator, and one with a wrong value."""
    import numpy as np

    from sts_export.backends.tensorrt.api import logger_of
    from sts_export.tensorrt.plugins import load_library

    logger, _ = logger_of(trt)
    load_library(trt, logger, library)
    load_library(trt, logger, library)  # is there already
    registry = trt.get_plugin_registry()
    result = []
    for name in ("RepulsionSelect", "LastTokenTopK"):
        creator = registry.get_creator(name, "1", "sts")
        fields = [(field.name, field.type.name) for field in creator.field_names]

        def make(value: float, creator: Any = creator, field: str = fields[0][0]) -> bool:
            array = np.array([value], np.float32)
            given = trt.PluginFieldCollection([trt.PluginField(field, array, trt.PluginFieldType.FLOAT32)])
            return creator.create_plugin("layer", given, trt.TensorRTPhase.RUNTIME) is not None

        identity = [creator.name, creator.plugin_version, creator.plugin_namespace]
        result.append({"identity": identity, "fields": fields, "made": make(0.5), "made_wrongly": make(-1.0)})
    return result


def main() -> None:
    trt = load(sys.argv[1])
    print(json.dumps({"version": trt.__version__}), flush=True)  # known even if what follows ends the process
    if len(sys.argv) > 2:
        print(json.dumps(creators(trt, Path(sys.argv[2]))))
        return
    classes = {name: value for name, value in vars(trt).items() if isinstance(value, type)}
    functions = {name: overloads(value) for name, value in vars(trt).items() if name == "get_plugin_registry"}
    print(json.dumps({"classes": {name: members(value) for name, value in classes.items()}, "functions": functions}))


if __name__ == "__main__":
    main()
