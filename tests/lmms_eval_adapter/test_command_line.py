"""lmms-eval's own command line over held-out questions: answers and accuracy are those of the pipeline, errors are errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.lmms_eval.demo_task import MAX_NEW_TOKENS, TASK, questions_of, write_task
from sts_export import Pipeline
from sts_export.errors import RequestError
from sts_export.exporting.exporter import ExportRequest, export

pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: see docs/evaluation/lmms_eval.md")
pytestmark = pytest.mark.slow

SCENES = range(2)
BUDGET = 32  # of a bundle for 64: answers that pruning makes wrong are among them


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task and a bundle of the demo model."""
    folder = tmp_path_factory.mktemp("lmms-eval")
    write_task(folder / "task", SCENES)
    export(ExportRequest("demo", folder / "bundle", budget="64"))
    return folder


def evaluate(work: Path, name: str, *options: str, model_args: str = "") -> subprocess.CompletedProcess[str]:
    """`lmms-eval` on the task, offline; results and samples go to the folder of this name."""
    arguments = f"bundle={work / 'bundle'},threads=1,{model_args}".rstrip(",")
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model=sts_export", f"--model_args={arguments}"]
    command += [f"--tasks={TASK}", f"--include_path={work / 'task'}", f"--output_path={work / name}", "--log_samples", *options]
    own = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, timeout=600)


def outputs(work: Path, name: str, kind: str) -> list[Path]:
    return sorted((work / name).rglob(f"*{kind}*.json*"))


def test_answers_and_accuracy_are_those_of_the_pipeline(work: Path) -> None:
    done = evaluate(work, "right", "--batch_size=4", model_args=f"budget={BUDGET}")
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,), (results,) = outputs(work, "right", "samples"), outputs(work, "right", "results")
    logged = {line["doc_id"]: line for line in map(json.loads, samples.read_text().splitlines())}
    vlm = Pipeline(work / "bundle", threads=1)
    asked = [one for scene in SCENES for one in questions_of(scene)]
    said = [vlm.generate(one.text, one.images, max_new_tokens=MAX_NEW_TOKENS, budget=BUDGET).text.strip() for one in asked]
    assert [answer_of(logged[number]) for number in range(len(asked))] == said
    right = sum(answer == one.answer for answer, one in zip(said, asked, strict=True))
    assert json.loads(results.read_text())["results"][TASK]["right,none"] == pytest.approx(right / len(asked))


def answer_of(logged: dict[str, Any]) -> str:
    return str(logged["filtered_resps"]).strip()


@pytest.mark.parametrize(
    ("options", "model_args", "said"),
    [
        (("--gen_kwargs=num_beams=5",), "", f"{TASK}: num_beams 5 is not supported"),
        (("--gen_kwargs=max_new_tokens=100000",), "", rf"{TASK}, test 0: 100000 new tokens do not fit"),
        ((), "pretrained=x", "model argument 'pretrained' is not known"),
    ],
)
def test_what_is_wrong_is_an_error_without_results(work: Path, options: tuple[str, ...], model_args: str, said: str) -> None:
    done = evaluate(work, "wrong", *options, model_args=model_args)
    assert re.search(said, done.stdout + done.stderr)
    assert outputs(work, "wrong", "results") == outputs(work, "wrong", "samples") == []


def test_other_kinds_of_requests_are_refused(work: Path) -> None:
    from sts_export.lmms_eval_adapter.model import StsExportModel

    model = StsExportModel(bundle=str(work / "bundle"), threads=1)
    requests = [SimpleNamespace(task_name="b"), SimpleNamespace(task_name="a"), SimpleNamespace(task_name="a")]
    with pytest.raises(RequestError, match=r"^a, b: requests of the kind loglikelihood are not supported"):
        model.loglikelihood(requests)
    with pytest.raises(RequestError, match=r"^a, b: requests of the kind generate_until_multi_round are not supported"):
        model.generate_until_multi_round(requests)


def test_model_args_go_before_the_batch_size_that_is_always_given(work: Path) -> None:
    from sts_export.lmms_eval_adapter.model import StsExportModel

    text = f"bundle={work / 'bundle'},threads=1,keep=[8,4]"
    usual = {"batch_size": "1", "max_batch_size": None, "device": None}
    model = StsExportModel.create_from_arg_string(f"{text},batch_size=3", usual)
    assert (model.arguments.batch_size, model.arguments.keep) == (3, (8, 4))
    assert StsExportModel.create_from_arg_string(text, {**usual, "batch_size": "2"}).arguments.batch_size == 2
