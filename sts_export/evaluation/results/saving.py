"""Tables and plots as files, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from sts_export.errors import OutputError, RequestError
from sts_export.evaluation.results.comparing import Comparison
from sts_export.evaluation.results.rows import Row
from sts_export.evaluation.results.tables import to_json, to_markdown
from sts_export.files import replace_file, replace_json
from sts_export.paths import user_path

_PICTURES = (".png", ".pdf", ".svg")


def save_tables(rows: Sequence[Row], comparisons: Sequence[Comparison], folder: Path) -> None:
    """``TASK.json`` and ``TASK.md``, which those of an earlier evaluation make way for.

    Raises:
        OutputError: the file system refuses.
    """
    name = rows[0].task
    try:
        replace_json(folder / f"{name}.json", to_json(rows, comparisons))
        replace_file(folder / f"{name}.md", (to_markdown(rows, comparisons) + "\n").encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror}); the answers are kept: run the same again") from None


def check_plot(file: str) -> Path:
    """Before anything runs.

    Raises:
        OutputError: the name says no form, or the folder is missing.
        RequestError: matplotlib is not installed.
    """
    target = user_path(file)
    if target.suffix.lower() not in _PICTURES:
        raise OutputError(f"cannot draw {file}: use a name that ends in {', '.join(_PICTURES)}")
    if not target.parent.is_dir() or target.is_dir():
        raise OutputError(f"cannot write {file}: its folder is missing, or it is one itself; choose another --plot")
    if find_spec("matplotlib") is None:
        raise RequestError("--plot needs matplotlib: pip install 'sts-export[analysis]'")
    return target


def save_plot(rows: Sequence[Row], file: str) -> None:
    """Raises OutputError and RequestError as :func:`check_plot`, and OutputError where the file system refuses."""
    target = check_plot(file)
    from sts_export.evaluation.results.plot import draw

    stream = BytesIO()
    draw(rows).savefig(stream, format=target.suffix[1:].lower(), dpi=110)
    try:
        replace_file(target, stream.getvalue())
    except OSError as error:
        raise OutputError(f"cannot write {file} ({error.strerror}); choose another --plot") from None
