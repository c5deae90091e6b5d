"""`sts-export`: arguments in, one call, text or JSON out.  No logic of its own; one module a command in commands/.

sts-export --model llava-1.5-7b --budget 64        export (the main job; `export` may be left out)
sts-export run BUNDLE --image cat.jpg --prompt "What is on the table?"
sts-export verify | build | bench | evaluate | inspect | show BUNDLE …
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from sts_export.cli import commands
from sts_export.cli.endings import run_command
from sts_export.cli.streams import close_streams, open_streams
from sts_export.errors import RequestError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted, 143 and 129 ended by SIGTERM, SIGHUP."""
    open_streams()
    # Of damaged metadata in pictures that can be read all the same; whoever sends them must not fill a server's log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        return run_command("sts-export", lambda: _command(list(sys.argv[1:] if argv is None else argv)))
    finally:
        close_streams()


def _command(arguments: list[str]) -> int:
    command = arguments.pop(0) if arguments and commands.exists(arguments[0]) else "export"
    if command == "export" and arguments and not arguments[0].startswith("-"):
        raise RequestError(f"unknown command {arguments[0]!r}: choose one of {', '.join(commands.summaries())}")
    module = commands.load(command)
    try:
        code = int(module.action(module.make_parser().parse_args(arguments)) or 0)
    except SystemExit:  # of --help and --version, which have printed
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code
