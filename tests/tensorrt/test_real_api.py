"""The fakes have the names, parameters and values of NVIDIA's own modules: TensorRT's lean runtime, and TensorRT for RTX.

What the package uses of TensorRT is what the fakes have: the tests of the backend and of the builder run on them.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from sts_export.testing.fakes import builder
from sts_export.testing.fakes.tensorrt import OWN, IRuntimeCache, IRuntimeConfig, module
from sts_export.testing.fakes.tensorrt_enums import DynamicShapesKernelSpecializationStrategy
from tests.tensorrt.real_api import missing

ROOT = Path(__file__).parents[2]
# Versions of the fakes that stand for the real modules.
FAKES = {"tensorrt_lean": module("tensorrt", "11.4.0.106"), "tensorrt_rtx": module("tensorrt_rtx", "1.7.1.116")}
# What the builder uses; the lean runtime has only the first of them.
BUILDING = {
    "IPluginRegistry": builder.Registry,
    "OnnxParser": builder.Parser,
    "Builder": builder.Builder,
    "IBuilderConfig": builder.Config,
}
BUILDER_ONLY = {"OnnxParser", "Builder", "IBuilderConfig", "NetworkDefinitionCreationFlag", "LayerType", "IAttentionInputLayer"}


@pytest.fixture(scope="module", params=list(FAKES))
def real(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Name of a module, and its classes as tests/tensorrt/real_api.py describes them."""
    name: str = request.param
    if (package := missing(name)) is not None:
        pytest.skip(f"{package} is not installed: pip install {package}")
    command = [sys.executable, "-m", "tests.tensorrt.real_api", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    described: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return name, described


def public(one: type) -> dict[str, Any]:
    """What a fake has in TensorRT's place: methods and properties."""
    found = {name: inspect.getattr_static(one, name) for name in dir(one) if not name.startswith("_") and name not in OWN}
    return {name: value for name, value in found.items() if isinstance(value, property) or inspect.isfunction(value)}


def wrong(fake: type, real: dict[str, Any]) -> list[str]:
    """Methods and properties of a fake that the real class has not, or not so."""
    found = []
    for name, value in public(fake).items():
        if name not in real:
            found.append(f"{fake.__name__}.{name} is not there")
        elif isinstance(value, property) != (real[name] is None):
            found.append(f"{fake.__name__}.{name} is {'no property' if isinstance(value, property) else 'no method'}")
        elif not isinstance(value, property):
            ours = list(inspect.signature(value).parameters)[1:]
            if not any(accepts(overload, ours) for overload in real[name]):
                found.append(f"{fake.__name__}.{name}{tuple(ours)} takes {real[name]}")
    return found


def accepts(overload: list[list[Any]], names: list[str]) -> bool:
    """The first parameters have these names, and the others have defaults."""
    return [name for name, _ in overload[: len(names)]] == names and all(default for _, default in overload[len(names) :])


def test_classes_of_the_runtime(real: tuple[str, dict[str, Any]]) -> None:
    name, described = real
    fakes = {key: value for key, value in vars(FAKES[name]).items() if isinstance(value, type)}
    if name == "tensorrt_rtx":
        fakes |= {"IRuntimeCache": IRuntimeCache, "IRuntimeConfig": IRuntimeConfig}
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "ILogger"} <= set(fakes) <= set(described["classes"])
    assert [line for key, fake in fakes.items() for line in wrong(fake, described["classes"][key])] == []
    assert sum(len(public(fake)) for fake in fakes.values()) >= 18


def test_enumerations(real: tuple[str, dict[str, Any]]) -> None:
    """Members and their values."""
    name, described = real
    fakes = [value for value in vars(FAKES[name]).values() if isinstance(value, type) and issubclass(value, IntEnum)]
    assert len(fakes) >= 4 and (name != "tensorrt_rtx" or DynamicShapesKernelSpecializationStrategy in fakes)
    for fake in fakes:
        theirs = described["classes"][fake.__name__]
        assert {member.name: theirs.get(member.name) for member in fake} == {member.name: int(member) for member in fake}
    theirs = described["classes"]["ILogger"]
    severities = vars(FAKES[name])["ILogger"].Severity
    assert all(theirs[member.name] == int(member) for member in severities)


def test_names_of_the_builder(real: tuple[str, dict[str, Any]]) -> None:
    name, described = real
    fake = vars(builder.FakeTensorRT("11.4.0.106").module())
    theirs, lean = described["classes"], name == "tensorrt_lean"
    absent = set(fake) - set(theirs) - set(described["functions"]) - {"__version__"}
    assert absent == (BUILDER_ONLY - {"IBuilderConfig"} if lean else set())
    for key, one in BUILDING.items():
        if key in theirs:
            assert wrong(one, theirs[key]) == []
        else:
            assert lean and key in BUILDER_ONLY
    assert "WORKSPACE" in theirs["MemoryPoolType"] and "TF32" in theirs["BuilderFlag"]
    assert theirs["IOptimizationProfile"]["set_shape"] == [[["input", False], ["min", False], ["opt", False], ["max", False]]]
    monitor = {"phase_start": ["phase_name", "parent_phase", "num_steps"], "step_complete": ["phase_name", "step"]}
    for method, names in monitor.items():
        assert any(accepts(overload, names) for overload in theirs["IProgressMonitor"][method])
    if not lean:
        assert {"builder_optimization_level", "progress_monitor", "set_compute_capability"} <= set(theirs["IBuilderConfig"])
        assert "ATTENTION_INPUT" in theirs["LayerType"] and "attention" in theirs["IAttentionInputLayer"]
        assert "REQUIRE_USER_ALLOCATION" in theirs["BuilderFlag"]
