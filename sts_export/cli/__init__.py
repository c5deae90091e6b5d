"""`sts-export`: arguments in, one call, text or JSON out.  No logic of its own; one module a command.

sts-export --model llava-1.5-7b --budget 64        export (the main job; `export` may be left out)
sts-export run BUNDLE --image cat.jpg --prompt "What is on the table?"
sts-export verify | build | bench | inspect | show BUNDLE …
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sts_export.cli.signals import Terminated, terminable
from sts_export.errors import RequestError, StsExportError

# Each is a module beside this one with ``make_parser()`` and ``action(args)``.
COMMANDS = ("export", "run", "verify", "build", "bench", "inspect", "show")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted, 143 and 129 ended by SIGTERM, SIGHUP."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "export"
    try:
        if command == "export" and arguments and not arguments[0].startswith("-"):
            raise RequestError(f"unknown command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}")
        module = import_module(f"sts_export.cli.{command}")
        with terminable():
            code = int(module.action(module.make_parser().parse_args(arguments)) or 0)
        sys.stdout.flush()
        return code
    except StsExportError as error:
        # Names of tensors and files may hold line breaks.
        print(f"sts-export: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sts-export: interrupted", file=sys.stderr)
        return 130
    except Terminated as end:
        print(f"sts-export: {end}", file=sys.stderr)
        return end.exit_code
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whoever reads the output, such as `head`, has seen enough
            print(f"sts-export: {' '.join(str(error).split())}; check disk and permissions", file=sys.stderr)
        _drop_output()
        return 1


def _drop_output() -> None:
    """What is still buffered has nowhere to go; Python would complain about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
