"""What goes wrong on a GPU is said in one line, with what to do about it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sts_export import Pipeline
from sts_export.backends.cuda_runtime import Cuda, open_cuda
from sts_export.backends.tensorrt import backend as tensorrt_backend
from sts_export.backends.tensorrt.api import LoggedErrors
from sts_export.backends.tensorrt.backend import TensorRtBackend, open_tensorrt_backend
from sts_export.bundle.manifest import open_bundle
from sts_export.errors import BackendError, BundleError
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.requests.feeds import prefill_feeds
from sts_export.requests.rows import PromptRows
from sts_export.tensorrt import record as record_module
from sts_export.tensorrt.record import PluginLibrary
from sts_export.testing.checkpoints import RandomLlava, random_image, write_random_llava
from sts_export.testing.fakes import tensorrt
from sts_export.testing.fakes.cuda import FakeCuda, cudaError_t
from sts_export.testing.fakes.engines import ACTIVATIONS, VERSIONS, alter_plan, write_engines
from sts_export.testing.fakes.execution import IExecutionContext
from tests.support.pipelines import LAYERS, PRUNE_LAYER, export_to
from tests.support.tensorrt_backend import NEW, OLD, RTX, Flavour, open_backend, open_on, token_feeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("tensorrt-errors")
    return export_to(write_random_llava(base / "checkpoint", RandomLlava(seed=61, layers=LAYERS)), base / "bundle")


def refusal(call: Callable[[], Any]) -> str:
    """The message, which is one line."""
    with pytest.raises(BackendError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The machine


def test_no_gpu() -> None:
    device = FakeCuda(devices=0)
    assert "no CUDA GPU" in (said := refusal(lambda: Cuda(device))) and "--backend onnxruntime" in said


def test_old_driver() -> None:
    device = FakeCuda()
    device.failures["cudaGetDeviceCount"] = cudaError_t.cudaErrorInsufficientDriver
    assert "driver is missing or too old" in (said := refusal(lambda: Cuda(device))) and "install a newer one" in said


def test_no_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "pip install 'cuda-bindings>=" in refusal(open_cuda)


def test_this_machine_says_what_it_lacks() -> None:
    """With the real cuda-bindings, where there is no GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaSuccess and count:
        pytest.skip("this machine has a GPU")
    assert "--backend onnxruntime" in refusal(open_cuda)


# Memory


def test_no_memory_for_caches(folder: Path) -> None:
    """How much was asked and is free; what fits still runs, and nothing of what did not is left."""
    device = FakeCuda()
    opened = open_on(folder, device=device)
    needed = opened.backend.new_caches(8)
    size = needed.bytes_of("llm_lower") + needed.bytes_of("llm_upper")
    del needed
    before = device.live(True)
    device.total = before + size // 2
    said = refusal(lambda: opened.backend.new_caches(8))
    assert "not enough GPU memory for the KV caches of 8 request(s) in llm_" in said
    assert f"free of {device.total / 1e6:.0f} MB" in said and "smaller batch" in said
    assert device.live(True) == before
    assert opened.backend.new_caches(1).slots == 1


@pytest.mark.parametrize("batches", [(4, 8), (1, 2, 3, 8), (8, 4, 2)], ids=str)
def test_idle_caches_make_room(folder: Path, batches: tuple[int, ...]) -> None:
    """Buffers of finished requests of other batch sizes are not worth a request that would fit without them."""

    def run(pipeline: Pipeline, batch: int) -> list[list[int]]:
        settings: Any = {"batch_size": batch, "max_new_tokens": 3, "ignore_eos": True}
        results = pipeline.generate([f"Who is number {index}?" for index in range(batch)], **settings)
        return [result.token_ids for result in results]

    alone = FakeCuda()
    keeping = open_on(folder, device=alone).pipeline()
    expected = run(keeping, max(batches))
    device = FakeCuda(memory=int(alone.live(True) * 1.1))
    pipeline = open_on(folder, device=device).pipeline()
    for batch in batches:
        assert run(pipeline, batch) == expected[:batch]
    assert device.problems == []


@pytest.mark.parametrize("kind", [BackendError, MemoryError])
def test_caches_that_do_not_fit_after_all(folder: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """One more try, with nothing idle left; its error is the one to see, and smaller requests still run."""
    pipeline = open_on(folder).pipeline()
    pipeline.generate("What?", random_image(0), max_new_tokens=2)
    reasons = iter(["while caches were idle", "without any"])

    def fail(batch: int) -> Any:
        raise kind(next(reasons))

    with monkeypatch.context() as failing:
        failing.setattr(pipeline._backend, "new_caches", fail)
        with pytest.raises(kind, match="without any"):
            pipeline.generate(["a", "b"], max_new_tokens=2)
    assert next(reasons, None) is None and not pipeline._free_caches
    assert pipeline.generate("What?", random_image(0), max_new_tokens=2).text is not None


def test_no_memory_for_activations(folder: Path) -> None:
    device = FakeCuda(memory=1 << 20)
    said = refusal(lambda: open_on(folder, device=device, activations=50_000_000))
    assert "not enough GPU memory for the engines' activations: 50 MB asked, 1 MB free of 1 MB" in said
    assert (device.live(True), device.live(False)) == (0, 0) and device.problems == []


@pytest.mark.parametrize("flavour", [NEW, RTX], ids=str)
def test_no_memory_for_a_context(folder: Path, flavour: Flavour) -> None:
    said = refusal(lambda: open_on(folder, flavour, no_context=True))
    assert "execution context of vision_encoder" in said and "OutOfMemory (Requested size was 1073741824" in said
    assert "GPU memory are free; use a smaller batch" in said


# Engine files


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no engine", "TensorRT does not load llm_upper.engine: IRuntime::deserializeCudaEngine"),
        (b"", "llm_upper.engine cannot be read"),
        (None, "llm_upper.engine cannot be read"),
    ],
    ids=["damaged", "empty", "missing"],
)
def test_engines_that_do_not_load(folder: Path, tmp_path: Path, content: bytes | None, text: str) -> None:
    engines = write_engines(open_bundle(folder), tmp_path)
    file = engines.file("llm_upper")
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    said = refusal(lambda: open_backend(engines, folder, FakeCuda()))
    assert text in said and f"sts-export build {folder} --runtime tensorrt" in said


def test_engine_of_another_version(folder: Path, tmp_path: Path) -> None:
    engines = write_engines(open_bundle(folder), tmp_path)
    alter_plan(engines, "selector", version="10.9.0.34")
    said = refusal(lambda: open_backend(engines, folder, FakeCuda()))
    assert "not compatible with this version of TensorRT, expecting 11.1" in said and "--runtime tensorrt" in said


def test_engine_of_another_graph(folder: Path, tmp_path: Path) -> None:
    engines = write_engines(open_bundle(folder), tmp_path)
    shutil.copyfile(engines.file("llm_lower"), engines.file("llm_upper"))
    said = refusal(lambda: open_backend(engines, folder, FakeCuda()))
    assert "llm_upper.engine is not an engine of this bundle's llm_upper (it differs in " in said


def test_engine_of_another_bundle(folder: Path, tmp_path: Path) -> None:
    """One with the same tensors, but another capacity."""
    other = export_to(folder.parent / "checkpoint", tmp_path / "other", max_new_tokens=25)
    engines = write_engines(open_bundle(other), tmp_path / "engines")
    said = refusal(lambda: open_backend(engines, folder, FakeCuda()))
    assert "llm_lower.engine is not an engine of this bundle's llm_lower (it differs in key_cache.0" in said


def test_engine_with_a_tensor_on_the_host(folder: Path, tmp_path: Path) -> None:
    engines = write_engines(open_bundle(folder), tmp_path)
    alter_plan(engines, "llm_lower", locations={"stage2_slots": 1})
    assert "it differs in stage2_slots)" in refusal(lambda: open_backend(engines, folder, FakeCuda()))


@pytest.mark.parametrize("recorded", [True, False])
def test_the_record_is_wrong_about_aliases(folder: Path, tmp_path: Path, recorded: bool) -> None:
    engines = write_engines(open_bundle(folder), tmp_path, aliased=not recorded)
    graphs = {name: replace(one, aliased_caches=recorded) for name, one in engines.record.graphs.items()}
    wrong = replace(engines, record=replace(engines.record, graphs=graphs))
    assert "it differs in key_cache_out.0" in refusal(lambda: open_backend(wrong, folder, FakeCuda()))


# Requests


def test_batch_that_the_engines_do_not_take(folder: Path) -> None:
    opened = open_on(folder, max_batch=2)
    before = opened.device.live(True)
    said = refusal(lambda: opened.pipeline().generate(["a", "b", "c"], max_new_tokens=2))
    assert "3 requests together, the engines take 2" in said
    assert f"sts-export build {folder} --runtime tensorrt --max-batch 3" in said
    assert opened.device.live(True) == before
    results = opened.pipeline().generate(["a", "b", "c"], max_new_tokens=2, batch_size=2)
    assert len(results) == 3


def test_shapes_outside_the_profile(folder: Path, tmp_path: Path) -> None:
    """Of engines that were built for less than the bundle promises."""
    engines = write_engines(open_bundle(folder), tmp_path)
    plan = json.loads(engines.file("llm_lower").read_text())
    plan["profiles"][0]["input_ids"][2] = [2, 9]
    alter_plan(engines, "llm_lower", profiles=plan["profiles"])
    backend = open_backend(engines, folder, FakeCuda())
    caches = backend.new_caches(1)

    def prompt(tokens: int) -> dict[str, NDArray[np.int64]]:
        ids, positions = np.zeros(tokens, np.int64), np.arange(tokens)
        parts = decoder_parts(LAYERS, (PRUNE_LAYER,))
        made = prefill_feeds(parts, PromptRows(ids, positions, tokens), (0, 0), whole=False, survivors_keep_positions=True)
        return made.feeds["llm_lower"]

    said = refusal(lambda: backend.run("llm_lower", prompt(12), caches=caches, slot=0))
    assert "input_ids of llm_lower has 12 sequence, the engine takes 1 to 9; build it again: sts-export build" in said
    kept = backend.run("llm_lower", prompt(5), caches=caches, slot=0, fetch=("kept_rows",))["kept_rows"]
    assert kept.tolist() == [[0, 1, 2, 3, 4]]


def test_outputs_of_another_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT would write beyond the buffer's end."""
    opened = open_on(folder)
    original = IExecutionContext.get_tensor_shape

    def larger(self: IExecutionContext, name: str) -> tuple[int, ...]:
        shape = original(self, name)
        return (*shape[:-1], shape[-1] + 1) if name == "visual_features" else shape

    monkeypatch.setattr(IExecutionContext, "get_tensor_shape", larger)
    for _ in range(2):  # and it is not forgotten
        said = refusal(lambda: opened.pipeline().features(random_image(0)))
    assert "the engine of vision_encoder makes visual_features of shape [1, 36, 33], not [1, 36, 32]; build it again" in said
    monkeypatch.undo()
    assert opened.pipeline().features(random_image(0))["visual_features"].shape == (1, 36, 32)


def test_what_tensorrt_said_is_said_once(folder: Path) -> None:
    """Each error repeats its own messages, not those of an earlier one."""
    opened = open_on(folder)
    image = opened.pipeline().prepared(random_image(0)).encoder_inputs
    plan = opened.backend._engines["vision_encoder"]._engine.plan
    for reason in ("the first reason", "the second reason"):
        plan["fails"] = f"enqueueV3: Error Code 1: Myelin ({reason})"
        said = refusal(lambda: opened.backend.run("vision_encoder", image))
        assert said.startswith("TensorRT failed in vision_encoder: IExecutionContext::enqueueV3: Error Code 1: Myelin")
        assert said.count("reason") == 1 and reason in said


def test_the_first_of_many_errors_are_repeated() -> None:
    """Later ones are what came of them."""
    messages = LoggedErrors()
    for index in range(40):
        messages.add(f"error\n{index}")
    assert messages.take() == "error 0; error 1; error 2"
    assert messages.take() == "it gives no reason"
    messages.add("another")
    assert messages.take() == "another"


def test_errors_of_the_device(folder: Path) -> None:
    opened = open_on(folder)
    caches = opened.backend.new_caches(1)
    opened.device.failures["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    said = refusal(lambda: opened.backend.decode(caches, token_feeds([5], [0], [0])))
    assert "CUDA failed in cudaStreamSynchronize: description of cudaErrorIllegalAddress" in said and "start again" in said


# Opening by name


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Both modules and a GPU, faked."""
    device = FakeCuda()

    def load(runtime: Any) -> Any:
        return tensorrt.module(runtime.replace("-", "_"), VERSIONS[runtime])

    for module in (tensorrt_backend, record_module):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(record_module, "current_gpu", lambda: None)
    monkeypatch.setattr(tensorrt_backend, "open_cuda", lambda: Cuda(device))
    return device


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_engines_of_a_bundle_are_found(folder: Path, tmp_path: Path, installed: FakeCuda, runtime: Any) -> None:
    bundle = open_bundle(shutil.copytree(folder, tmp_path / "bundle"))
    with pytest.raises(BundleError, match=f"sts-export build .* --runtime {runtime}"):
        open_tensorrt_backend(bundle, runtime)
    write_engines(bundle, runtime=runtime)
    with open_tensorrt_backend(bundle, runtime) as backend:
        assert isinstance(backend, TensorRtBackend) and backend.max_batch == 2
        assert installed.live(True) >= ACTIVATIONS
    assert installed.live(True) == 0 and installed.problems == []


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_pipeline_by_name(folder: Path, tmp_path: Path, installed: FakeCuda, runtime: Any) -> None:
    """Opened as a user opens it; more prompts than the engines take together run in parts."""
    bundle = open_bundle(shutil.copytree(folder, tmp_path / "bundle"))
    write_engines(bundle, runtime=runtime)
    prompts, images = ["What is it?", "And this?", "Who?"], [random_image(1), random_image(2), random_image(3)]
    answers = [
        Pipeline(bundle.folder, backend=name).generate(prompts, images, max_new_tokens=5, ignore_eos=True)
        for name in (runtime, "onnxruntime")
    ]
    ours, theirs = ([(one.token_ids, one.kept_stage1, one.kept_stage2) for one in results] for results in answers)
    assert ours == theirs and installed.calls["cudaGraphLaunch"] > 0 and installed.problems == []


def test_the_plugin_library_is_loaded_before_the_engines(
    folder: Path, tmp_path: Path, installed: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(shutil.copytree(folder, tmp_path / "bundle"))
    engines = write_engines(bundle)
    library = engines.folder / "libsts_plugins.so"
    library.write_bytes(b"library")
    with_plugins = replace(engines, record=replace(engines.record, plugins=PluginLibrary(library.name, "")))
    events: list[Any] = []
    monkeypatch.setattr(tensorrt_backend, "open_engines", lambda *_, **__: with_plugins)
    monkeypatch.setattr(tensorrt_backend, "load_library", lambda trt, logger, file: events.append((trt.__name__, logger, file)))
    monkeypatch.setattr(tensorrt_backend, "TensorRtBackend", lambda *_: events.append("opened"))
    open_tensorrt_backend(bundle, "tensorrt")
    (name, logger, file), opened = events
    assert (name, file, opened) == ("tensorrt", library, "opened") and hasattr(logger, "log")


def test_old_engines_have_no_aliases_to_check(folder: Path, tmp_path: Path) -> None:
    """TensorRT before 10.15 cannot be asked."""
    engines = write_engines(open_bundle(folder), tmp_path, version=OLD.version, aliased=False)
    module = tensorrt.module("tensorrt", OLD.version)
    assert not hasattr(module.ICudaEngine, "get_aliased_input_tensor")
    backend = open_backend(engines, folder, FakeCuda())
    assert {part.copies for part in backend.new_caches(1).parts.values()} == {2}
