"""Versions, and modules that are not there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from sts_export.errors import BackendError, RequestError
from sts_export.tensorrt.runtimes import graph_version, load, parse_version, strongly_typed


@pytest.mark.parametrize(("text", "version"), [("10.3", (10, 3)), ("10.3.0.26", (10, 3)), ("11.1", (11, 1))])
def test_versions(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version
    assert graph_version("tensorrt", text) == version


@pytest.mark.parametrize("text", ["", "10", "ten.3", "10.3.", "10.-3", "1.2.3.4.5", "٣.٣x"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(RequestError, match="is not a TensorRT version"):
        parse_version(text)


def test_suffixes_of_an_installed_version_do_not_matter() -> None:
    assert graph_version("tensorrt", "10.13.3.9.post1") == (10, 13)


def test_tensorrt_for_rtx_counts_its_own_versions() -> None:
    """Its 1.7 has the operators that TensorRT has from 10.15 on."""
    assert graph_version("tensorrt-rtx", "1.7.1.116") >= (10, 15)


def test_a_missing_module_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # makes the import fail
    with pytest.raises(BackendError, match=r"pip install 'sts-export\[tensorrt\]'"):
        load("tensorrt")


def test_networks_are_strongly_typed_with_and_without_a_flag() -> None:
    """TensorRT 10 needs the flag; 11 has no other networks, and may drop it."""
    ten = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    eleven = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace())
    assert (strongly_typed(ten), strongly_typed(eleven)) == (2, 0)
