"""The demo model's answers on the GPU against those on the CPU, to the token and to the kept index."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.gpu.pipelines import NO_OPERATORS, BundleTarget, open_pipeline
from scripts.gpu.progress import Clock
from scripts.gpu.smoke.answers import Answer, compare
from scripts.gpu.smoke.capture import capture_and_replay
from scripts.gpu.smoke.engines import DTYPES, Engine, engines
from sts_export.backends.choice import CUDA

BUDGET = "128"
_NEW_TOKENS = 8


def run(
    clock: Clock,
    save: Callable[[dict[str, Any]], None],
    scratch: Path,
    *,
    device: str,
    operators: Path | None = None,
    dtypes: tuple[str, ...] = DTYPES,
) -> None:
    """Every engine answers the same questions; one that fails is recorded and the others go on.

    Args:
        save: gets the record after every engine.
        scratch: folder for bundles.
        device: ``cuda`` or ``cpu``.
        operators: library of operators for ONNX Runtime on CUDA.
    """
    record: dict[str, Any] = {"capture": None, "budget": BUDGET, "engines": []}
    if device == "cuda":
        clock.say("capturing and replaying a CUDA graph")
        record["capture"] = capture_and_replay()
        save(record)
    for dtype in dtypes:
        clock.say(f"exporting the demo model, {dtype}")
        bundle = _export(scratch / dtype, dtype)
        answered: dict[str, list[Answer]] = {}
        for engine in engines(device, operators):
            clock.say(f"{dtype}: {engine.name}")
            record["engines"].append(_answer(bundle, dtype, engine, answered))
            save(record)
    if not record["engines"]:
        save(record)


def _answer(bundle: Path, dtype: str, engine: Engine, answered: dict[str, list[Answer]]) -> dict[str, Any]:
    """One engine's record; ``answered`` gets its answers."""
    record: dict[str, Any] = {"dtype": dtype, "engine": engine.name, "against": engine.against, "error": None}
    try:
        answers, used = _ask(bundle, engine)
    except Exception as error:  # the other engines must run
        traceback.print_exc()
        return {**record, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    answered[engine.name] = answers
    record["operators"] = used
    if engine.operators is not None and not used:
        record["error"] = "the library of operators was not used"
    if engine.against is not None:
        if engine.against not in answered:
            return {**record, "error": f"{engine.against} gave nothing to compare with"}
        record["comparison"] = compare(answers, answered[engine.against])
    return record


def _ask(bundle: Path, engine: Engine) -> tuple[list[Answer], str | None]:
    """Answers to the questions about the shipped pictures, and the library of operators that ran, if one did."""
    operators = str(engine.operators) if engine.operators is not None else NO_OPERATORS if engine.backend == CUDA else None
    answers, used = [], None
    with open_pipeline(BundleTarget(str(bundle), engine.backend, operators), engine.threads) as pipeline:
        for picture, question in _questions():
            result = pipeline.generate(question, picture, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
            answers.append(Answer(result.token_ids, [*result.kept_stage1, result.kept_stage2]))
            used = result.to_json().get("operators")
    return answers, used


def _questions() -> list[tuple[Path, str]]:
    """The first about each picture."""
    from sts_export.demo import PICTURES_DIR

    asked = json.loads((PICTURES_DIR / "questions.json").read_text())
    return [(PICTURES_DIR / picture, questions[0]["question"]) for picture, questions in asked.items()]


def _export(folder: Path, dtype: str) -> Path:
    from sts_export.demo import MODEL_DIR
    from sts_export.exporting.exporter import ExportRequest, export

    return export(ExportRequest(str(MODEL_DIR), output=folder, budget=BUDGET, dtype=dtype)).folder
