"""The one exception family of the project.

Every message is one line: what is wrong, then what to do about it.  The command line prints it and exits with
``exit_code``; library users catch :class:`StsExportError` or one of its children.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StsExportError(Exception):
    """The work failed (exit code 1), or, for :class:`RequestError`, could never have succeeded (exit code 2)."""

    exit_code = 1


class RequestError(StsExportError):
    """What was asked for is wrong: bad argument, bad input file, impossible combination.

    Attributes:
        request: the place, in a list of prompts, of the one that it is about; None where it is not about one of a list.
        field: the argument or setting that it is about, as Python names it; None where it is about several, or none.  A line
            that begins with this name may be said with another one, where the setting has another name.
    """

    exit_code = 2
    request: int | None = None
    field: str | None = None

    def __init__(self, *args: object, field: str | None = None) -> None:
        super().__init__(*args)
        if field is not None:
            self.field = field


class BudgetError(RequestError):
    """A visual-token budget, keep pair or other pruning setting that cannot be met."""

    field = "budget"


class CheckpointError(RequestError):
    """The source checkpoint is missing, damaged, unsupported or does not match its architecture."""


class BundleError(RequestError):
    """An exported bundle is missing files, altered, or from another version."""


class OutputError(RequestError):
    """The result cannot be written where it was asked for."""


class ImageError(RequestError):
    """An input image cannot be read or is not acceptable."""

    field = "images"


class PromptError(RequestError):
    """A prompt, or a prompt together with its images, cannot be run."""

    field = "prompt"


class BackendError(StsExportError):
    """An inference engine refused or failed to run a graph."""


class BusyError(StsExportError):
    """A request that was refused or given up because others are served; the same one may succeed later."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """A RequestError of this block, or of a function that this decorates, is about ``field`` unless it says another one."""
    try:
        yield
    except RequestError as error:
        if error.field is None:
            error.field = field
        raise
