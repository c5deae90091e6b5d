"""Prints what a bundle asks of CUDA: ``python -m scripts.cuda_imitation BUNDLE``."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from scripts.cuda_imitation.counts import Counts
from scripts.cuda_imitation.failures import ImitationError
from scripts.cuda_imitation.kernel_names import short_names
from scripts.cuda_imitation.library import DEFAULT_PACKAGES
from scripts.cuda_imitation.runs import Counted, Run, count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.cuda_imitation", description=__doc__)
    option = parser.add_argument
    option("bundle", type=Path, help="folder written by sts-export, in float32, float16 or bfloat16")
    option("--picture", type=_size, default=(336, 336), help="WIDTHxHEIGHT in pixels (default: 336x336)")
    option("--operators", type=Path, help="library of custom operators, linked with the shared CUDA runtime")
    option("--onnxruntime-gpu", type=Path, default=DEFAULT_PACKAGES, help="its folder (default: %(default)s)")
    option("--answer", choices=("first", "again", "other_length"), default="again", help="of the three (default: again)")
    option("--in-order", metavar="GRAPH", help='all that one graph asks for, in order, as in "decode llm_lower"')
    arguments = parser.parse_args()
    run = Run(arguments.bundle.resolve(), arguments.picture, arguments.operators and arguments.operators.resolve())
    try:
        with tempfile.TemporaryDirectory() as scratch:
            (counted,) = count([run], arguments.onnxruntime_gpu.resolve(), Path(scratch))
    except ImitationError as error:
        sys.exit(f"cuda_imitation: {error}")
    graphs = getattr(counted, arguments.answer)
    if arguments.in_order is None:
        for graph, counts in graphs.items():
            _print_table(graph, counts, counted)
    elif arguments.in_order in graphs:
        _print_in_order(graphs[arguments.in_order])
    else:
        sys.exit(f"cuda_imitation: there is no graph {arguments.in_order!r}; there are {', '.join(graphs)}")


def _size(text: str) -> tuple[int, int]:
    if (found := re.fullmatch(r"(\d+)x(\d+)", text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 336x336")
    return int(found[1]), int(found[2])


def _print_table(graph: str, counts: Counts, counted: Counted) -> None:
    name = graph.split()[-1]
    print(f"\n{graph}: {counted.nodes_on(name, cuda=True)} nodes on the GPU, {counted.nodes_on(name, cuda=False)} on the CPU")
    for kind, number in counts.by_kind().items():
        if number:
            print(f"{number:8}  {kind}")
    print("  by name")
    short, by_name = short_names(counts.by_name()), Counter[str]()
    for mangled, number in counts.by_name().items():
        by_name[short[mangled]] += number
    for called, number in by_name.most_common():
        print(f"{number:8}  {called}")


def _print_in_order(counts: Counts) -> None:
    short = short_names(counts.by_name())
    for event in counts.events:
        print(short.get(event.name) or f"[{event.kind}: {event.name}, {event.bytes} bytes]")


if __name__ == "__main__":
    main()
