"""Decoders of three and four parts on fakes of TensorRT, against transformers' layers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sts_export.backends.cuda_runtime import Cuda
from sts_export.backends.tensorrt.backend import TensorRtBackend
from sts_export.graphs.contracts import GraphContract
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.requests.feeds import decode_feeds, passed_on, prefill_feeds
from sts_export.requests.rows import PromptRows
from sts_export.testing.fakes import tensorrt
from sts_export.testing.fakes.cuda import FakeCuda
from tests.graphs.decoders import CAPACITY, LAYERS, VISUAL, Case, Request, batch_of, expected
from tests.support.tensorrt_backend import FLAVOURS, Flavour, check_nothing_left

SLOTS = 3
KEEPS = (7, 4, 2)  # after each cut, of VISUAL rows


def profile(contract: GraphContract, batch: int, rows: int) -> dict[str, list[list[int]]]:
    """Least, best and largest shapes, up to so many requests and rows."""

    def shapes(shape: tuple[int | str, ...]) -> list[list[int]]:
        largest = [size if isinstance(size, int) else batch if size == "batch" else rows for size in shape]
        least = [size if isinstance(size, int) else 1 for size in shape]
        return [least, least, largest]

    return {spec.name: shapes(spec.shape) for spec in contract.inputs}


def open_parts(found: Case, flavour: Flavour, device: FakeCuda, folder: Path) -> TensorRtBackend:
    """A backend of the decoder alone."""
    contracts = {contract.name: contract for contract in found.contracts}
    for (name, contract), model in zip(contracts.items(), found.models, strict=True):
        onnx.save(ir.to_proto(model), folder / f"{name}.onnx")
        plan = {
            "magic": tensorrt.MAGIC,
            "version": flavour.version,
            "graph": str(folder / f"{name}.onnx"),
            "weights": str(folder),
            "profiles": [profile(contract, 1, CAPACITY), profile(contract, SLOTS, 1)],
            "caches": {after: before for before, after in contract.caches},
            "aliased": flavour.aliased,
            "patches_per_token": 1,
            "activations": 1024,
            "capturable": True,
            "locations": {},
            "fails": "",
            "no_context": False,
        }
        (folder / f"{name}.engine").write_text(json.dumps(plan))
    records = {name: SimpleNamespace(aliased_caches=flavour.aliased) for name in contracts}
    record = SimpleNamespace(runtime=flavour.runtime, max_batch=SLOTS, graphs=records)
    engines: Any = SimpleNamespace(folder=folder, record=record, file=lambda name: folder / f"{name}.engine")
    parts = decoder_parts(LAYERS, found.variant.cuts)
    manifest = SimpleNamespace(
        graphs=contracts, pruning=SimpleNamespace(parts=parts), model=SimpleNamespace(tower=None, vision=None)
    )
    bundle: Any = SimpleNamespace(folder=folder, manifest=manifest)
    return TensorRtBackend(bundle, engines, tensorrt.module(flavour.runtime.replace("-", "_"), flavour.version), Cuda(device))


class Decoder:
    """Requests in the slots of one decoder."""

    def __init__(self, found: Case, backend: TensorRtBackend) -> None:
        self.found, self.backend, self.caches = found, backend, backend.new_caches(SLOTS)
        self.parts = decoder_parts(LAYERS, found.variant.cuts)
        self.choices: dict[str, Any] = {"survivors_keep_positions": found.variant.positions == "keep"}
        self.rows: list[list[int]] = []
        self.positions: list[list[int]] = []

    def add(self, request: Request) -> np.ndarray[Any, Any]:
        prompt = PromptRows(request.ids, request.positions, int(request.positions.max()) + 1)
        counts = (VISUAL, *KEEPS[: len(self.parts) - 1])
        made = prefill_feeds(self.parts, prompt, counts, whole=False, **self.choices)
        outputs: dict[str, Any] = {"visual_embeds": request.embeds[None]}
        for contract in self.found.contracts:
            feeds = {**passed_on(contract, outputs), **made.feeds[contract.name]}
            run = self.backend.run(contract.name, feeds, caches=self.caches, slot=len(self.rows), fetch=("logits",))
            outputs = dict(run)
        self.rows.append(list(made.rows))
        self.positions.append(list(made.next_positions))
        logits: np.ndarray[Any, Any] = outputs["logits"][0]
        return logits

    def step(self, tokens: list[int], step: int) -> np.ndarray[Any, Any]:
        rows, positions = (np.array(by_slot).T + step for by_slot in (self.rows, self.positions))
        mrope = bool(self.found.config.mrope_section)
        return self.backend.decode(
            self.caches, decode_feeds(self.parts, np.array(tokens), list(rows), list(positions), mrope=mrope, **self.choices)
        )


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@pytest.mark.parametrize("name", ["llama_cut_twice", "llama_cut_thrice", "qwen_cut_twice"])
def test_any_number_of_parts(name: str, flavour: Flavour, tmp_path: Path) -> None:
    """Prompts of several lengths, each into its slot, and a token of all of them at a time."""
    found, requests = batch_of(name, SLOTS)
    device = FakeCuda()
    backend = open_parts(found, flavour, device, tmp_path)
    decoder = Decoder(found, backend)
    logits = [[decoder.add(request)] for request in requests]
    for step in range(len(requests[0].tokens)):
        for slot, row in enumerate(decoder.step([request.tokens[step] for request in requests], step)):
            logits[slot].append(row)
    assert list(decoder.caches.parts) == [part.name for part in decoder.parts]
    for request, ours in zip(requests, logits, strict=True):
        _, theirs = expected(found, request, KEEPS[: len(found.contracts) - 1])
        np.testing.assert_allclose(np.stack(ours), theirs, rtol=1e-3, atol=1e-3)
    del decoder
    backend.close()
    check_nothing_left(device)
