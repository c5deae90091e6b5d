"""What is recorded of the CUDA path: bounds that hold, a page that says the same, and how growth is told."""

from __future__ import annotations

import shutil

import pytest

from scripts.cuda_imitation import recorded
from scripts.cuda_imitation.cases import OPERATOR_MARK
from scripts.cuda_imitation.kernel_names import short_names

ROWS = recorded.read().rows
SELECTORS = {"selector, N = 576, K = 96": 95, "selector, N = 5 x 576, K = 5 x 96": 95, "selector, N = 2880, K = 480": 479}


def test_the_page_says_what_is_recorded() -> None:
    page = recorded.PAGE.read_text(encoding="utf-8")
    assert recorded.table(recorded.read(recorded.BEFORE).rows, ROWS) in page, f"make it anew: {recorded.RENEW}"


@pytest.mark.parametrize("selector", SELECTORS)
def test_selector_with_the_operator_library(selector: str) -> None:
    row = ROWS[selector + OPERATOR_MARK]
    assert row["launches"] <= 40 and row["synchronizations"] <= 2


@pytest.mark.parametrize(("selector", "steps"), [*SELECTORS.items(), ("selector, N = 2880, K = 480, for up to N = 16384", 479)])
def test_selector_without_it(selector: str, steps: int) -> None:
    assert ROWS[selector]["launches"] <= 5 * steps + 40


def test_growth_is_told_by_row_and_kind() -> None:
    before = {"decode": {"launches": 5, "memsets": 1}, "gone": {"launches": 1}}
    now = {"decode": {"launches": 6, "memsets": 0, "plans": 2}, "new": {"launches": 1}}
    assert recorded.grown(now, before) == [
        "decode: 2 plans, 0 are recorded",
        "decode: 6 launches, 5 are recorded",
        "new: not recorded",
    ]
    assert recorded.grown(before, before) == []


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is absent (GNU binutils)")
def test_short_names_of_kernels() -> None:
    add = "_ZN11onnxruntime4cuda24_BinaryElementWiseSimpleILb1ELb0EfffNS0_6OP_AddIfffEELi256ELi4EiEEvPKT2_PKT3_PT1_T4_T7_"
    inner = "_ZN45_GLOBAL__N__e1928ab6_12_fpgeneric_cu_69b3876718transposeNoOverlapEP6__halfPKS0_ii"
    assert short_names([add, inner, "cublasGemmEx"]) == {
        add: "_BinaryElementWiseSimple Add<float, float, float>",
        inner: "transposeNoOverlap",
        "cublasGemmEx": "cublasGemmEx",
    }
