"""What the commands' parsers share."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from sts_export.errors import RequestError


class Parser(argparse.ArgumentParser):
    """argparse prints its whole usage on errors; one line has to do.  Options are written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        for action in self._actions:  # Python before 3.13 makes an empty list of `--budget=--`
            if action.nargs is None and action.default is None and getattr(parsed, action.dest, None) == []:
                self.error(f"argument {'/'.join(action.option_strings) or action.dest}: expected one argument")
        return parsed

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse would pass over a full disk

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def command_parser(command: str, description: str, *, bundle: bool = True) -> Parser:
    parser = Parser(prog="sts-export" if command == "export" else f"sts-export {command}", description=description)
    if bundle:
        parser.add_argument("bundle", metavar="BUNDLE", help="folder written by sts-export")
    return parser


def add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, help="default: the checkpoint's limit, or what the bundle holds")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the engine's choice); runs on the CPU")
    add_backend(parser)


def add_backend(parser: argparse.ArgumentParser) -> None:
    from sts_export.backends.choice import BACKENDS

    parser.add_argument("--backend", choices=BACKENDS, help="default: the best that the bundle and this machine offer")
    parser.add_argument(
        "--plugins",
        metavar="FILE",
        help="libsts_onnxruntime.so, for onnxruntime-cuda, which it chooses (default: the bundle's, else build/plugins, else "
        "the one of sts-export-kernels)",
    )
