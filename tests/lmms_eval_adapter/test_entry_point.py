"""lmms-eval finds the adapter by an entry point, which costs nothing where there is no lmms-eval."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sts_export.lmms_eval_adapter import manifest

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_entry_point_gives_the_manifest() -> None:
    declared = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]["lmms_eval.models"]
    assert declared.keys() == {"sts_export"}
    assert EntryPoint("sts_export", declared["sts_export"], "lmms_eval.models").load() is manifest


def test_the_adapter_is_imported_without_lmms_eval_and_torch() -> None:
    program = (
        "import sys, sts_export.lmms_eval_adapter, sts_export.lmms_eval_adapter.answering\n"
        "sys.exit(', '.join(sorted({'lmms_eval', 'torch'} & sys.modules.keys())) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_lmms_eval_takes_the_manifest() -> None:
    pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: see docs/evaluation/lmms_eval.md")
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    resolved = registry.resolve("sts_export")
    assert (resolved.model_type, resolved.class_name) == ("chat", "StsExportModel")
    assert registry.get_model_class("sts_export").is_simple is False
