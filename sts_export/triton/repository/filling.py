"""Files that are written from templates/."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from string import Template


class _Text(Template):
    """``@@name``: shells, Containerfiles and compose files have dollars of their own."""

    delimiter = "@@"


def filled(name: str, values: Mapping[str, str]) -> str:
    """A template with its values, which have to be safe where they stand.

    Raises:
        KeyError: a value is missing.
    """
    text = files("sts_export.triton.repository").joinpath("templates", name).read_text(encoding="utf-8")
    return _Text(text).substitute(values)
