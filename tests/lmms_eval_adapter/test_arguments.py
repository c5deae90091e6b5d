"""What stands in --model_args."""

from __future__ import annotations

from typing import Any

import pytest

from sts_export.errors import RequestError
from sts_export.lmms_eval_adapter.arguments import Arguments, read_arguments


def test_as_lmms_eval_gives_them() -> None:
    """It makes numbers of what looks like one, passes --batch_size as text and None for what was not given."""
    given = {"bundle": "b64", "budget": 32, "batch_size": "4", "max_batch_size": None, "device": None}
    assert read_arguments(given) == Arguments("b64", budget=32, batch_size=4)


def test_all_of_them() -> None:
    given = {"bundle": 7, "keep": "[96,32]", "batch_size": 2, "max_new_tokens": 9, "seed": 1, "threads": 2}
    given |= {"backend": "onnxruntime"}
    taken = read_arguments(given)
    assert taken == Arguments("7", None, (96, 32), 2, 9, 1, 2, "onnxruntime")
    assert taken.pruning == {"budget": None, "keep": (96, 32)}


def test_counts_as_yaml_has_them() -> None:
    assert read_arguments({"bundle": "b", "keep": [96, 32]}).keep == (96, 32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no bundle was given"),
        ({"bundle": "b", "pretrained": "x"}, "model argument 'pretrained' is not known; use bundle, budget, keep"),
        ({"bundle": "b", "device": "cuda:0"}, "device 'cuda:0' is not for bundles"),
        ({"bundle": "b", "batch_size": "auto"}, "batch_size auto is not supported"),
        ({"bundle": "b", "batch_size": "auto:4"}, "batch_size auto:4 is not supported"),
        ({"bundle": "b", "batch_size": 0}, "batch_size must be at least 1"),
        ({"bundle": "b", "batch_size": "many"}, "batch_size must be a whole number"),
        ({"bundle": "b", "batch_size": 1.5}, "batch_size must be a whole number"),
        ({"bundle": "b", "max_new_tokens": "9x"}, "max_new_tokens must be a whole number"),
        ({"bundle": "b", "keep": "[96"}, "is not two numbers"),
        ({"bundle": "b", "keep": 96}, "keep 96 is not two numbers"),
        ({"bundle": "b", "keep": "[a,b]"}, "is not two numbers"),
    ],
)
def test_refusals(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        read_arguments(given)
    assert "\n" not in str(caught.value)
