"""Exported and pruned against transformers unpruned, on CPU, in one run: `python -m benchmarks.against_transformers`.

A random float32 LLaVA-1.5 shape of 0.36 B parameters (16 decoder layers x 1024, ViT 8 x 512, 576 visual tokens), the same
picture and prompt, 2 threads.  Both sides work from the picture file to the first token (image processor included), then
decode greedily.  They take turns, each in its own process; only the ratios mean anything from one machine to another.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shape import PROMPT, checkpoint_folder, commit, generation_options
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.files import replace_json
from sts_export.json_records import encode
from sts_export.measuring.bench import BenchTask, bench, format_table
from sts_export.measuring.turns import Contender, Runner
from sts_export.media.synthetic import synthetic_image


class TransformersRunner:
    """LlavaForConditionalGeneration with its default attention (sdpa)."""

    def __init__(self, target: str, task: BenchTask) -> None:
        import torch
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

        if task.threads:
            torch.set_num_threads(task.threads)
        self._torch, self._task = torch, task
        self._model = LlavaForConditionalGeneration.from_pretrained(target, dtype=torch.float32).eval()
        self._processor = LlavaProcessor.from_pretrained(target)

    def run(self) -> dict[str, float]:
        with self._torch.no_grad():
            return self._timed()

    def describe(self) -> dict[str, Any]:
        return {}

    def _timed(self) -> dict[str, float]:
        from sts_export.media.images import load_image

        started, task = time.perf_counter(), self._task
        assert task.image is not None
        text = f"USER: <image>\n{task.prompt} ASSISTANT:"
        inputs = self._processor(images=load_image(task.image), text=text, return_tensors="pt")
        output = self._model(**inputs, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        first = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(task.max_new_tokens - 1):
            output = self._model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        decode = (time.perf_counter() - started) / (task.max_new_tokens - 1)
        return {"first_token_ms": first * 1e3, "decode_ms_per_token": decode * 1e3}


def open_transformers(target: str, task: BenchTask) -> Runner:
    return TransformersRunner(target, task)


def stage2_ms(heads: int, head_dim: int, text: int, keep1: int, keep2: int, threads: int) -> float:
    """Median time of sts::LastTokenTopK alone at these shapes; in the bundle it is part of llm_lower."""
    import onnx_ir as ir
    import onnxruntime as ort

    from sts_export.graphs.contracts import GraphContract, TensorSpec
    from sts_export.graphs.model import build_model
    from sts_export.pruning.stage2.last_token import last_token_topk

    heads_spec = ("batch", heads, "rows", head_dim)
    contract = GraphContract(
        "stage2",
        (
            TensorSpec("query", heads_spec, "float32"),
            TensorSpec("key", heads_spec, "float32"),
            TensorSpec("attention_mask", ("batch", "rows"), "int64"),
            TensorSpec("visual_embeds", ("batch", "visual", 1), "float32"),
            TensorSpec("stage2_slots", ("visual_keep",), "int64"),
        ),
        (TensorSpec("kept_rows", ("batch", "survivors"), "int64"), TensorSpec("last_row", ("batch",), "int64")),
    )

    def forward(op, query, key, attention_mask, visual_embeds, slots):  # type: ignore[no-untyped-def]
        row = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(attention_mask, start=1)), op.Constant(value_int=1))
        mask = op.Less(op.Mul(row, attention_mask), op.Constant(value_int=keep1))
        inputs = (query, key, attention_mask, mask, visual_embeds, slots)
        return op.call(last_token_topk(), *inputs, scale=head_dim**-0.5, _outputs=["rows_kept", "last"])

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(ir.to_proto(build_model(contract, forward)).SerializeToString(), options)
    rng = np.random.default_rng(0)
    feeds = {
        "query": rng.standard_normal((1, heads, text + keep1, head_dim), dtype=np.float32),
        "key": rng.standard_normal((1, heads, text + keep1, head_dim), dtype=np.float32),
        "attention_mask": np.ones((1, text + keep1), np.int64),
        "visual_embeds": np.zeros((1, keep1, 1), np.float32),
        "stage2_slots": np.zeros(keep2, np.int64),
    }
    times = []
    for _ in range(20):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))


def main() -> None:
    args = generation_options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoint_folder(args.checkpoint, Path(scratch))
        bundle, image = Path(scratch) / "bundle", Path(scratch) / "picture.png"
        synthetic_image(0).save(image)
        manifest = export(ExportRequest(str(checkpoint), output=bundle, budget=args.budget, weights="link")).manifest
        task = BenchTask(str(image), PROMPT, args.max_new_tokens, args.repeats, args.threads)
        ours = Contender(f"sts-export, budget {args.budget}", "sts_export.measuring.bench:open_pipeline", str(bundle))
        theirs = Contender("transformers, unpruned", "benchmarks.against_transformers:open_transformers", str(checkpoint))
        results = bench([ours, theirs], task)
    decoder, pruning = manifest.model.decoder, manifest.pruning
    stage2 = stage2_ms(decoder.num_heads, decoder.head_dim, 40, pruning.keep_stage1, pruning.keep_stage2, args.threads)
    share = (results[0].median("selection_ms") + stage2) / results[0].median("first_token_ms")
    print(format_table(results))
    print(f"stage 2 alone {stage2:.2f} ms; both stages and the projection {share:.1%} of the first token")
    if args.json:
        record = {
            "commit": commit(),
            "machine": {"processor": platform.machine(), "threads": args.threads},
            "pruning": encode(manifest.pruning),
            "capacities": asdict(manifest.capacities),
            "results": [result.to_json() for result in results],
            "stage2_ms": stage2,
            "selection_share": share,
        }
        replace_json(args.json, record)


if __name__ == "__main__":
    main()
