"""The one exception family of the project.

Every message is one line: what is wrong, then what to do about it.  The command line prints it and exits with
``exit_code``; library users catch :class:`StsExportError` or one of its children.
"""

from __future__ import annotations


class StsExportError(Exception):
    """The work failed (exit code 1), or, for :class:`RequestError`, could never have succeeded (exit code 2)."""

    exit_code = 1


class RequestError(StsExportError):
    """What was asked for is wrong: bad argument, bad input file, impossible combination.

    ``request`` is the place, in a list of prompts, of the one that it is about; None where it is not about one of a list.
    """

    exit_code = 2
    request: int | None = None


class BudgetError(RequestError):
    """A visual-token budget, keep pair or other pruning setting that cannot be met."""


class CheckpointError(RequestError):
    """The source checkpoint is missing, damaged, unsupported or does not match its architecture."""


class BundleError(RequestError):
    """An exported bundle is missing files, altered, or from another version."""


class OutputError(RequestError):
    """The result cannot be written where it was asked for."""


class ImageError(RequestError):
    """An input image cannot be read or is not acceptable."""


class PromptError(RequestError):
    """A prompt, or a prompt together with its images, cannot be run."""


class BackendError(StsExportError):
    """An inference engine refused or failed to run a graph."""


class BusyError(StsExportError):
    """A request that was refused or given up because others are served; the same one may succeed later."""
