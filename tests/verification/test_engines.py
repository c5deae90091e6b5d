"""Engines against ONNX Runtime with Polygraphy: what passes, what must not, and what is said without a GPU.

No engine runs here.  In its place stands ONNX Runtime once more, on the graphs lowered for TensorRT 10.3, and a runner that
spoils one output."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sts_export import Pipeline
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import BackendError, BundleError, RequestError
from sts_export.lowering.tensorrt import lower
from sts_export.tensorrt.build import BuildRequest, build
from sts_export.tensorrt.device import Gpu, current_gpu
from sts_export.tensorrt.inventory import command_files
from sts_export.tensorrt.portable.polygraphy_script import Agreement
from sts_export.tensorrt.portable.sample_inputs import Case
from sts_export.tensorrt.process import python_command
from sts_export.tensorrt.record import open_engines
from sts_export.testing.checkpoints import random_image
from sts_export.verification import engines as module
from sts_export.verification.engines import (
    CaseReport,
    CompareReport,
    compare_cases,
    compare_engines,
    engine_runner,
    format_comparison,
)
from tests.support.bundles import export_to
from tests.support.sample_cases import CASES

pytest.importorskip("polygraphy", reason="polygraphy is not installed: pip install 'polygraphy>=0.50'")

from polygraphy.backend.base import BaseRunner  # needs polygraphy
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.backend.trt import TrtRunner

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
PROMPT = "What?"


@pytest.fixture(scope="module")
def exact(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Bundles in float32, with room for the prompt in every family's template."""
    return export_all(checkpoints, tmp_path_factory.mktemp("exact"), "float32")


@pytest.fixture(scope="module")
def half(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The same in float16."""
    return export_all(checkpoints, tmp_path_factory.mktemp("half"), "float16")


def export_all(checkpoints: dict[str, Path], folder: Path, dtype: str) -> dict[str, Bundle]:
    return {
        family: export_to(checkpoint, folder / family, dtype, max_prompt_tokens=90)
        for family, checkpoint in checkpoints.items()
    }


def session(bundle: Bundle, graph: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.folder.resolve()))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def lowered_runner(bundle: Bundle, case: Case) -> Any:
    graph = lower(bundle.graph_file(case.graph).read_bytes(), (10, 3), plugins=False).graph
    return OnnxrtRunner(partial(session, bundle, graph), name="lowered")


class Spoiled(BaseRunner):  # type: ignore[misc]
    """Another runner, one output of which is changed."""

    def __init__(self, runner: Any, output: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        super().__init__(prefix="spoiled")
        self.runner, self.output, self.change = runner, output, change

    def activate_impl(self) -> None:
        self.runner.activate()

    def get_input_metadata_impl(self) -> Any:
        return self.runner.get_input_metadata(use_numpy_dtypes=False)

    def infer_impl(self, feed_dict: Any) -> Any:
        outputs = self.runner.infer(feed_dict)
        if self.output in outputs:
            outputs[self.output] = self.change(outputs[self.output])
        self.inference_time = 0.0
        return outputs

    def deactivate_impl(self) -> None:
        self.runner.deactivate()


def image_of(family: str) -> Any:
    return random_image(3, (300, 100) if family == "llava_next" else (200, 120))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_form_of_the_same_graphs_passes(
    exact: dict[str, Bundle], half: dict[str, Bundle], family: str, dtype: str
) -> None:
    bundle = (exact if dtype == "float32" else half)[family]
    reports = compare_cases(bundle, partial(lowered_runner, bundle), image=image_of(family), prompt=PROMPT)
    assert [report.name for report in reports] == [case.name for case in CASES]
    for report, case in zip(reports, CASES, strict=True):
        assert set(report.outputs) == {spec.name for spec in bundle.manifest.graphs[case.graph].outputs}
        assert report.passed, report
        indices = {name for name, item in report.outputs.items() if item.kind == "index"}
        assert indices == {spec.name for spec in bundle.manifest.graphs[case.graph].outputs if spec.dtype == "int64"}
    # They are other graphs, so the numbers are not the same bits: the comparison looked at the second side.
    assert any(item.max_abs > 0 for report in reports for item in report.outputs.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inputs_are_those_of_the_pipeline(exact: dict[str, Bundle], family: str) -> None:
    """The logits of the walk through the graphs are the pipeline's, of the prompt and after one token."""
    bundle, image = exact[family], image_of(family)
    seen: dict[str, Any] = {}

    class Watch(Spoiled):
        def infer_impl(self, feed_dict: Any) -> Any:
            outputs = super().infer_impl(feed_dict)
            seen.setdefault(self.output, []).append((dict(feed_dict), dict(outputs)))
            return outputs

    def open_runner(case: Case) -> Any:
        return Watch(lowered_runner(bundle, case), case.name, lambda array: array)

    compare_cases(bundle, open_runner, image=image, prompt=PROMPT)
    logits = [seen[name][0][1]["logits"][0] for name in ("llm_upper_prefill", "llm_upper_decode")]
    token = int(seen["llm_lower_decode"][0][0]["input_ids"][0, 0])
    assert token == logits[0].argmax()
    expected = Pipeline(bundle.folder, threads=1).score(PROMPT, image, [token, token])
    np.testing.assert_allclose(np.stack(logits), expected, atol=1e-4)


def larger(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = array.copy()
    changed.flat[-1] += 0.01 * np.abs(array).max() + 0.01
    return changed


def not_a_number(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


def next_one(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = array.copy()
    changed.flat[0] += 1
    return changed


@pytest.mark.parametrize(
    ("output", "change", "failing"),
    [
        ("visual_features", larger, ["vision_encoder"]),
        ("visual_features", not_a_number, ["vision_encoder"]),
        ("visual_features", lambda array: array[:, :-1], ["vision_encoder"]),
        ("kept_index", next_one, ["selector"]),
        ("visual_embeds", larger, ["selector"]),
        ("hidden_states", larger, ["llm_lower_prefill", "llm_lower_decode"]),
        ("kept_rows", next_one, ["llm_lower_prefill", "llm_lower_decode"]),
        ("last_row", next_one, ["llm_lower_prefill", "llm_lower_decode"]),
        ("value_cache_out.0", np.zeros_like, ["llm_lower_prefill", "llm_lower_decode"]),
        ("logits", larger, ["llm_upper_prefill", "llm_upper_decode"]),
        ("logits", np.zeros_like, ["llm_upper_prefill", "llm_upper_decode"]),
    ],
)
def test_a_broken_engine_fails(
    exact: dict[str, Bundle], output: str, change: Callable[[np.ndarray[Any, Any]], Any], failing: list[str]
) -> None:
    bundle = exact["llava"]

    def open_runner(case: Case) -> Any:
        return Spoiled(lowered_runner(bundle, case), output, change)

    reports = compare_cases(bundle, open_runner, image=image_of("llava"), prompt=PROMPT)
    assert [report.name for report in reports if not report.passed] == failing
    for report in reports:
        if not report.passed:
            assert not report.outputs[output]
    whole = CompareReport("tensorrt", "10.3.0", "here", "float32", reports)
    assert not whole.passed and not whole.to_json()["passed"]
    assert format_comparison(whole).count("FAILED") == len(failing) + 1


def test_an_engine_that_does_not_run(exact: dict[str, Bundle]) -> None:
    from polygraphy.exception import PolygraphyException

    def fails(array: np.ndarray[Any, Any]) -> Any:
        raise PolygraphyException("`execute_async_v3()` failed.")

    bundle = exact["llava"]
    with pytest.raises(BackendError, match=r"selector does not run: `execute_async_v3\(\)` failed"):
        compare_cases(bundle, lambda case: Spoiled(lowered_runner(bundle, case), "kept_index", fails), prompt=PROMPT)


# Reports


def test_a_report_survives_json_and_is_shown() -> None:
    case = CaseReport(
        "llm_lower_prefill",
        {
            "kept_rows": Agreement("index", 3.0, 0.2, True, 0.0625),
            "last_row": Agreement("index", 0.0, 0.0, True),
            "hidden_states": Agreement("float", 0.5, 0.01, True),
        },
    )
    assert CaseReport.from_json(json.loads(json.dumps(case.to_json()))) == case
    report = CompareReport("tensorrt-rtx", "1.7.1.116", "portable", "float16", (case,))
    assert report.passed and report.to_json()["tolerance"] == 0.03
    text = format_comparison(report)
    assert "6% other rows" in text and "5.00e-01" in text and "1.00e-02" in text and "hidden_states" in text
    assert text.splitlines()[-1].startswith("passed: tensorrt-rtx 1.7.1.116 against ONNX Runtime in float16, tolerance 0.03")
    assert not CompareReport("tensorrt", "10.3.0", "here", "float32", ()).passed  # nothing compared


# What it needs


@pytest.fixture(scope="module")
def built(exact: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Engines of TensorRT for RTX in a bundle of its own."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'sts-export[tensorrt-rtx]'")
    import shutil

    copy = shutil.copytree(exact["llava"].folder, tmp_path_factory.mktemp("built") / "bundle")
    build(BuildRequest(copy, "tensorrt-rtx"))
    return open_bundle(copy)


def test_a_build_leaves_commands(built: Bundle) -> None:
    assert command_files(built) == ["engines/commands-tensorrt-rtx.sh"]
    assert (built.folder / "engines" / "polygraphy" / "inputs.npz").is_file()


def test_without_engines(exact: dict[str, Bundle]) -> None:
    folder = exact["llava"].folder
    with pytest.raises(BundleError, match=r"has no tensorrt-rtx engines; build them: sts-export build"):
        compare_engines(folder, "tensorrt-rtx")


def test_bfloat16(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bundle = export_to(checkpoints["llava"], tmp_path / "bundle", "bfloat16")
    with pytest.raises(RequestError, match="cannot run bfloat16; export and build with --dtype float16"):
        compare_engines(bundle.folder, "tensorrt-rtx")


def test_without_a_gpu(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "current_gpu", lambda: None)
    with pytest.raises(BackendError, match="verify --backend tensorrt-rtx runs the engines, and no CUDA GPU is found here"):
        compare_engines(built.folder, "tensorrt-rtx")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"needs Polygraphy: pip install 'sts-export\[tensorrt-rtx\]' or 'polygraphy>=0.50'"),
        ("0.49.27", r"Polygraphy 0.49.27 cannot run .* pip install --upgrade 'polygraphy>=0.50'"),
    ],
)
def test_without_a_fitting_polygraphy(built: Bundle, monkeypatch: pytest.MonkeyPatch, found: str | None, message: str) -> None:
    def version(name: str) -> str:
        assert name == "polygraphy"
        if found is None:
            raise PackageNotFoundError
        return found

    monkeypatch.setattr(module, "version", version)
    with pytest.raises(RequestError, match=message):
        compare_engines(built.folder, "tensorrt-rtx")


def test_a_wrong_picture_is_refused_by_the_worker(built: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "current_gpu", lambda: Gpu("pretended", "sm_89", 1 << 34, 1 << 34))
    with pytest.raises(RequestError, match=r"nowhere\.png"):
        compare_engines(built.folder, "tensorrt-rtx", image=str(tmp_path / "nowhere.png"))


def test_the_worker_takes_engines_to_the_gpu(built: Bundle) -> None:
    """All but the GPU: real engines through Polygraphy's loader in the worker's process; without a GPU it says so."""
    job = {"bundle": str(built.folder), "runtime": "tensorrt-rtx", "image": None, "prompt": PROMPT}
    done = subprocess.run(
        python_command("sts_export.verification.engines"),
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
    )
    (line,) = done.stdout.splitlines()
    if current_gpu() is None:
        assert done.returncode == 1
        assert json.loads(line)["error"].startswith("vision_encoder does not run: Could not deserialize engine")
    else:
        assert all(CaseReport.from_json(case).passed for case in json.loads(line)["cases"])


def test_a_worker_that_dies_is_reported(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "python_command", lambda _: ["/bin/false"])
    with pytest.raises(BackendError, match=r"ended without a result \(exit code 1\)"):
        module._run_worker({}, "tensorrt")


def test_polygraphy_does_what_engines_need(built: Bundle) -> None:
    """The installed one binds aliased caches, and its runner takes what we give it."""
    assert "get_aliased_input_tensor" in inspect.getsource(TrtRunner)
    runner = engine_runner(open_engines(built, "tensorrt-rtx"), CASES[-1])
    assert isinstance(runner, TrtRunner) and runner.optimization_profile == 1
