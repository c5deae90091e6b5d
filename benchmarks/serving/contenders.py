"""Servers that are measured, each with the questions and what it should answer."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import peer, server
from benchmarks.serving.alone import asked_alone
from benchmarks.serving.questions import Question, budgets_of, make_questions, pipeline_answers
from sts_export import Pipeline
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest

_MODEL = "served"


@dataclass(frozen=True)
class Contender:
    """A server that is ready."""

    name: str
    process: subprocess.Popen[str]
    address: str
    questions: list[Question]


@contextmanager
def ours(args: argparse.Namespace, model: str, budget: str, scratch: Path) -> Iterator[Contender]:
    """A bundle of that budget, `none` for all tokens, behind `sts-export serve`; the pipeline says what is right."""
    pruned = budget != "none"
    request = ExportRequest(
        model,
        scratch / f"bundle-{budget}",
        budget if pruned else None,
        method=None if pruned else "none",
        quantize=None if args.quantize == "none" else args.quantize,
        max_new_tokens=args.new_tokens,
    )
    bundle = export(request).folder
    with Pipeline(bundle) as pipeline:
        budgets = budgets_of(pipeline.manifest.pruning.budget) if pruned and not args.peer else [None]
        asked = make_questions(args.questions, args.new_tokens, budgets)
        right = pipeline_answers(pipeline, asked)
    with server.started(server.served(bundle, _MODEL, args.slots, reuse=args.reuse)) as (process, address):
        name = f"sts-export, budget {budget}" if pruned else "sts-export, unpruned"
        yield Contender(name, process, address, asked_alone(address, _MODEL, asked, right))


@contextmanager
def theirs(args: argparse.Namespace, model: str, scratch: Path) -> Iterator[Contender]:
    """OpenVINO GenAI; what it answers alone is right."""
    folder = scratch / "openvino"
    peer.convert(args.peer, model, folder, args.quantize)
    asked = make_questions(args.questions, args.new_tokens)
    command = peer.served(args.peer, folder, args.slots, args.peer_batched_tokens, reuse=args.reuse == "all")
    with server.started(command) as (process, address):
        yield Contender(peer.NAME, process, address, asked_alone(address, _MODEL, asked))
