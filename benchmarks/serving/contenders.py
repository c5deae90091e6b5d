"""Servers that are measured, each with the questions and what it should answer."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.serving import peer, server
from benchmarks.serving.alone import asked_alone
from benchmarks.serving.questions import Asked, Question, budgets_of, make_questions, pipeline_answers
from benchmarks.serving.streams import HTTP, Transport
from benchmarks.serving.triton.asking import GRPC
from benchmarks.serving.triton.repository import repository
from sts_export import Pipeline
from sts_export.exporting.exporter import export
from sts_export.exporting.plan import ExportRequest
from sts_export.testing.triton.server import triton_server

TRITON = "Triton"
_MODEL = "served"


@dataclass(frozen=True)
class Contender:
    """A server that is ready.

    Args:
        pid: of its process.
    """

    name: str
    pid: int
    address: str
    questions: list[Question]
    transport: Transport = HTTP
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """A bundle, what it is asked, and the pipeline's answers."""

    name: str
    folder: Path
    asked: Sequence[Asked]
    right: Sequence[str]


def exported(args: argparse.Namespace, model: str, budget: str, scratch: Path) -> Exported:
    """A bundle of that budget, `none` for all tokens."""
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
    return Exported(f"budget {budget}" if pruned else "unpruned", bundle, asked, right)


@contextmanager
def ours(args: argparse.Namespace, bundle: Exported) -> Iterator[Contender]:
    """Behind `sts-export serve`; the pipeline says what is right."""
    command = server.served(bundle.folder, _MODEL, args.slots, reuse=args.reuse)
    with server.started(command) as (process, address):
        questions = asked_alone(address, _MODEL, bundle.asked, bundle.right)
        yield Contender(f"sts-export, {bundle.name}", process.pid, address, questions)


@contextmanager
def in_triton(args: argparse.Namespace, bundle: Exported, scratch: Path) -> Iterator[Contender]:
    """In a real Triton, by the repository that we write for it; the pipeline says what is right."""
    folder = repository(bundle.folder, scratch / "model_repository", _MODEL, args.slots, reuse=args.reuse)
    with triton_server(folder, script=folder / "run-server") as triton:
        questions = asked_alone(triton.grpc, _MODEL, bundle.asked, bundle.right, GRPC)
        versions = {"tritonserver": triton.version, "tritonclient": metadata.version("tritonclient")}
        yield Contender(TRITON, triton.pid, triton.grpc, questions, GRPC, versions)


@contextmanager
def theirs(args: argparse.Namespace, model: str, scratch: Path) -> Iterator[Contender]:
    """OpenVINO GenAI; what it answers alone is right."""
    folder = scratch / "openvino"
    peer.convert(args.peer, model, folder, args.quantize)
    asked = make_questions(args.questions, args.new_tokens)
    command = peer.served(args.peer, folder, args.slots, args.peer_batched_tokens, reuse=args.reuse == "all")
    with server.started(command) as (process, address):
        questions = asked_alone(address, _MODEL, asked)
        yield Contender(peer.NAME, process.pid, address, questions, versions=peer.versions(args.peer))
