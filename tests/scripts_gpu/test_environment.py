"""What a result says of the machine it was measured on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from scripts.gpu.machine.environment import GPU_BACKENDS, describe, missing_backends, slug
from scripts.gpu.records import record_file, write_record


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("Tesla T4 (MIG 1g.5gb)", "tesla-t4-mig-1g-5gb"),
    ],
)
def test_names_of_gpus(name: str, expected: str) -> None:
    assert slug({"gpu": {"name": name}, "processors": 16}) == expected


def test_a_machine_without_gpu() -> None:
    assert slug({"gpu": None, "processors": 2}) == "cpu2"


def test_given_commit_comes_first() -> None:
    environment = describe("0123abc")
    assert environment["commit"] == "0123abc"
    assert environment["versions"]["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_no_backend() -> None:
    assert set(missing_backends()) == set(GPU_BACKENDS)


def test_names_of_files(tmp_path: Path) -> None:
    environment = {"machine": {"gpu": {"name": "NVIDIA H200"}, "processors": 16}}
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d-nvidia-h200-kernels\.json", record_file(tmp_path, environment, "kernels", toy=False).name
    )
    assert "-toy-" in record_file(tmp_path, environment, "kernels", toy=True).name


def test_records_are_replaced_whole(tmp_path: Path) -> None:
    write_record(tmp_path / "new" / "record.json", {"a": 1})
    write_record(tmp_path / "new" / "record.json", {"b": 2})
    assert (tmp_path / "new" / "record.json").read_text() == '{\n "b": 2\n}\n'
    assert len(list((tmp_path / "new").iterdir())) == 1
