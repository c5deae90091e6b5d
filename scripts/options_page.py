"""docs/options.md from the commands' own parsers: python -m scripts.options_page > docs/options.md"""

from __future__ import annotations

import argparse
from importlib import import_module

from sts_export.cli import COMMANDS

_HEAD = """# Options

Every option of every command, as `--help` says it. What the commands are for is in [use](usage.md).
This page is made by `python -m scripts.options_page > docs/options.md`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(command) for command in COMMANDS)])


def _section(command: str) -> str:
    parser: argparse.ArgumentParser = import_module(f"sts_export.cli.{command}").make_parser()
    title = "sts-export [export]" if command == "export" else f"sts-export {command}"
    first = (parser.description or "").strip().splitlines()[0]
    rows = [_row(action) for action in parser._actions if action.dest not in ("help", "version")]
    return "\n".join([f"## `{title}`\n", first, "\n| option | value | meaning |\n|---|---|---|", *rows, ""])


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
    if action.choices is not None:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    elif action.nargs == 0 or not action.option_strings:
        value = ""
    else:
        value = f"`{action.metavar or action.dest.upper()}`"
    meaning = ("required; " if action.required and action.option_strings else "") + (action.help or "").replace("%%", "%")
    return f"| {names} | {value} | {meaning.removesuffix('; ')} |".replace("  ", " ")


if __name__ == "__main__":
    print(page(), end="")
