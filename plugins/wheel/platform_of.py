"""Which platform a wheel of libraries is for: platform_of.py FILE ...  Prints it, or what is wrong, with exit code 1."""

from __future__ import annotations

import sys
from pathlib import Path

from sts_export.native.elf import exported_names, machine_of


def main(files: list[Path]) -> int:
    machines = {file.name: machine_of(file) for file in files}
    damaged = [file.name for file in files if machines[file.name] is None or exported_names(file) is None]
    if damaged:
        print(f"{damaged[0]} is no whole shared library for Linux on x86-64 or aarch64")
        return 1
    names = sorted({machine.replace("-", "_") for machine in machines.values() if machine is not None})
    if len(names) > 1:
        print(f"the libraries are for different machines ({', '.join(names)})")
        return 1
    print(f"linux_{names[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
