"""What errors say beside their line."""

from __future__ import annotations

import pickle

import pytest

from sts_export.errors import BudgetError, ImageError, PromptError, RequestError, about


@pytest.mark.parametrize(
    "error, field",
    [
        (RequestError("wrong"), None),
        (RequestError("wrong", field="stop"), "stop"),
        (PromptError("wrong"), "prompt"),
        (ImageError("wrong"), "images"),
        (BudgetError("wrong"), "budget"),
        (BudgetError("wrong", field="keep"), "keep"),
    ],
)
def test_fields(error: RequestError, field: str | None) -> None:
    assert (error.field, str(error)) == (field, "wrong")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.field, str(again)) == (type(error), field, "wrong")


def test_a_block_or_function_that_is_about_a_field() -> None:
    @about("grammar")
    def refuse(error: Exception) -> None:
        raise error

    named = RequestError("a", field="stop")
    for error, field in ((RequestError("a"), "grammar"), (named, "stop"), (PromptError("a"), "prompt")):
        with pytest.raises(RequestError) as found:
            refuse(error)
        assert found.value is error and error.field == field
    with pytest.raises(RequestError) as found, about("seed"):
        raise RequestError("b")
    assert found.value.field == "seed"
    with pytest.raises(ValueError, match="other"):
        refuse(ValueError("other"))
