"""dtypes by the names that the field's tools use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sts_export.bundle.manifest import open_bundle
from sts_export.cli import main
from sts_export.dtypes import DTYPES, dtype_named
from sts_export.errors import RequestError
from tests.cli.helpers import Work

NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@pytest.mark.parametrize(("short", "name"), NAMES.items())
def test_short_names(short: str, name: str) -> None:
    assert dtype_named(short) == dtype_named(name) == name


@given(st.text().filter(lambda text: text not in {*NAMES, *NAMES.values()}))
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="unknown dtype"):
        dtype_named(text)


@pytest.mark.parametrize(("short", "name"), NAMES.items())
def test_on_the_command_line(work: Work, short: str, name: str) -> None:
    assert main(work.export(f"--dtype={short}")) == 0
    assert open_bundle(Path(work.output)).manifest.dtype == name


def test_float32_under_both_names_fits_a_quantized_export(work: Work) -> None:
    assert main(work.export("--quantize=int8", "--dtype=fp32")) == 0
    assert open_bundle(Path(work.output)).manifest.quantization == "int8"


def test_all_dtypes_are_known() -> None:
    assert set(DTYPES) == set(NAMES.values())
