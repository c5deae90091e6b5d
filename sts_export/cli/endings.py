"""How a command ends: an exit code, and one line on standard error for whatever stopped it."""

from __future__ import annotations

from collections.abc import Callable

from sts_export.cli.signals import Terminated, terminable
from sts_export.cli.streams import say
from sts_export.errors import StsExportError


def run_command(name: str, body: Callable[[], int | None], kept: str = "") -> int:
    """Exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted, 143 and 129 ended by SIGTERM, SIGHUP.

    Args:
        name: that lines begin with.
        body: does the work; None counts as 0.
        kept: said after whatever stops a command from outside: what there is to go on with.
    """
    after = f"; {kept}" if kept else ""
    try:
        with terminable():
            return body() or 0
    except StsExportError as error:
        say(f"{name}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"{name}: interrupted{after}")
        return 130
    except Terminated as end:
        say(f"{name}: {end}{after}")
        return end.exit_code
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever reads the output, such as `head`, has seen enough
            say(f"{name}: {error}; check disk and permissions{after}")
        return 1
