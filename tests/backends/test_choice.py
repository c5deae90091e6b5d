"""Which engine a bundle gets: by name, or by what the bundle and the machine offer."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sts_export import Pipeline
from sts_export.backends import choice as backends
from sts_export.backends.choice import BACKENDS, CPU, CUDA, OpenedBackend, open_backend
from sts_export.backends.onnxruntime import sessions as onnxruntime_sessions
from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.errors import BackendError, BundleError, RequestError, StsExportError
from sts_export.testing.checkpoints import random_image, random_prompt
from tests.support.pipelines import Spy, export_to

GPU = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


class Machine:
    """Backends that work on it; remembers which were tried."""

    def __init__(self, working: dict[str, StsExportError | None]) -> None:
        self.working = working
        self.tried: list[str] = []

    def open(self, bundle: Bundle, name: str, threads: int | None = None, plugins: Any = None) -> OpenedBackend:
        self.tried.append(name)
        self.plugins = plugins
        if (error := self.working[name]) is not None:
            raise error
        return OpenedBackend(name, None)  # type: ignore[arg-type]


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 1, provider: bool = True, **errors: StsExportError) -> Machine:
    """A machine with so many GPUs, on which everything works but for ``errors`` (underscores for hyphens)."""
    named = {name.replace("_", "-"): error for name, error in errors.items()}
    made = Machine({name: named.get(name) for name in BACKENDS})
    monkeypatch.setattr(backends, "_open", made.open)
    monkeypatch.setattr(backends, "count_gpus", lambda: gpus)
    monkeypatch.setattr(onnxruntime_sessions, "cuda_refusal", lambda: None if provider and gpus else "none")
    return made


@pytest.fixture
def built(bundle: Path, tmp_path: Path) -> Bundle:
    """With folders of engines for both runtimes."""
    copied = shutil.copytree(bundle, tmp_path / "built")
    for runtime in ("tensorrt", "tensorrt-rtx"):
        (copied / "engines" / runtime / "any").mkdir(parents=True)
    return open_bundle(copied)


def test_names() -> None:
    assert set(BACKENDS) == {"onnxruntime", *GPU}


def test_engines_come_first(built: Bundle, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT, TensorRT for RTX, ONNX Runtime on the GPU, the CPU: the first that works, and nothing else is tried."""
    no = BackendError("no")
    for broken in range(4):
        order = [*GPU, CPU]
        errors: dict[str, Any] = dict.fromkeys((name.replace("-", "_") for name in order[:broken]), no)
        here = machine(monkeypatch, **errors)
        assert open_backend(built).name == order[broken]
        assert here.tried == order[: broken + 1]
    here = machine(monkeypatch)
    assert open_backend(open_bundle(bundle)).name == CUDA  # no engines in it
    assert here.tried == [CUDA]


def test_what_is_passed_over_is_said_once(
    built: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line each, whatever the reason looks like."""
    machine(
        monkeypatch,
        tensorrt=BundleError("they were built for another GPU;\nbuild them again: sts-export build"),
        tensorrt_rtx=BackendError("not installed"),
    )
    with caplog.at_level(logging.WARNING):
        assert open_backend(built).name == CUDA
    assert [record.getMessage() for record in caplog.records] == [
        "note: tensorrt is not used: they were built for another GPU; build them again: sts-export build",
        "note: tensorrt-rtx is not used: not installed",
    ]


def test_engines_without_a_gpu(built: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """They are not even opened; the bundle runs on the CPU."""
    here = machine(monkeypatch, gpus=0)
    assert open_backend(built).name == CPU and here.tried == [CPU]
    assert [record.getMessage() for record in caplog.records] == [
        f"note: {runtime} is not used: the bundle has engines, but there is no CUDA GPU here"
        for runtime in ("tensorrt", "tensorrt-rtx")
    ]


def test_nothing_is_said_where_nothing_is_passed_over(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU without ONNX Runtime for it, and no GPU at all."""
    for gpus in (0, 1):
        here = machine(monkeypatch, gpus=gpus, provider=False)
        assert open_backend(open_bundle(bundle)).name == CPU and here.tried == [CPU]
    assert not caplog.records


def test_quantized_bundles_go_to_the_cpu(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch)
    assert open_backend(open_bundle(export_to(checkpoint, tmp_path / "bundle", quantize="int8"))).name == CPU
    assert here.tried == [CPU]


def test_threads_choose_the_cpu(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch)
    assert open_backend(built, threads=2).name == CPU and here.tried == [CPU]


@pytest.mark.parametrize("name", [None, CUDA])
def test_plugins_choose_cuda(built: Bundle, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """Before engines, too; where CUDA does not work that is an error, since the CPU would leave the plugins out."""
    here = machine(monkeypatch)
    assert open_backend(built, name, plugins="some.so").name == CUDA
    assert here.tried == [CUDA] and here.plugins == "some.so"
    here = machine(monkeypatch, onnxruntime_cuda=BackendError("no"))
    with pytest.raises(BackendError, match=r"^no$"):
        open_backend(built, name, plugins="some.so")
    assert here.tried == [CUDA]


@pytest.mark.parametrize(
    ("name", "threads", "message"),
    [
        (CPU, None, "plugins are for onnxruntime-cuda: leave them out with the backend onnxruntime, or take onnxruntime-cuda"),
        ("tensorrt", None, "tensorrt takes the plugins that its engines were built with: leave them out, or take onnxruntime-"),
        ("tensorrt-rtx", None, "tensorrt-rtx takes the plugins that its engines were built with: leave them out"),
        (None, 2, "threads are for the CPU, and plugins for onnxruntime-cuda: leave one of them out"),
        (CPU, 2, "threads are for the CPU, and plugins for onnxruntime-cuda: leave one of them out"),
    ],
)
def test_plugins_belong_to_cuda(
    built: Bundle, monkeypatch: pytest.MonkeyPatch, name: str | None, threads: int | None, message: str
) -> None:
    here = machine(monkeypatch)
    with pytest.raises(RequestError, match=f"^{message}"):
        open_backend(built, name, threads, "some.so")
    assert not here.tried


def test_a_name_is_kept_to(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for and does not work is an error, not something else."""
    for name in BACKENDS:
        errors: dict[str, Any] = {name.replace("-", "_"): BackendError("no")}
        here = machine(monkeypatch, **errors)
        with pytest.raises(BackendError, match=r"^no$"):
            open_backend(built, name)
        assert here.tried == [name]


def test_if_the_cpu_fails_too_all_reasons_are_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 bundle beside a GPU that does not work: the CPU's refusal alone would mislead."""
    machine(monkeypatch, onnxruntime_cuda=BackendError("update the driver"), onnxruntime=BackendError("no bfloat16"))
    with pytest.raises(BackendError, match=r"^no bfloat16 \(onnxruntime-cuda is not used: update the driver\)$"):
        open_backend(open_bundle(bundle))
    machine(monkeypatch, gpus=0, onnxruntime=BackendError("no bfloat16"))
    with pytest.raises(BackendError, match=r"^no bfloat16$"):
        open_backend(open_bundle(bundle))


@pytest.mark.parametrize("name", GPU)
def test_threads_belong_to_the_cpu(bundle: Path, name: str) -> None:
    with pytest.raises(RequestError, match=f"threads are for the CPU: leave them out with the backend {name}"):
        Pipeline(bundle, backend=name, threads=1)


@pytest.mark.parametrize("name", ["", "cuda", "TensorRT"])
def test_unknown_names(bundle: Path, name: str) -> None:
    with pytest.raises(RequestError, match=f"there is no backend {name!r}; choose one of onnxruntime, onnxruntime-cuda, "):
        Pipeline(bundle, backend=name)


def test_the_result_names_the_backend(bundle: Path) -> None:
    for settings in ({"threads": 1}, {"backend": "onnxruntime"}):
        vlm = Pipeline(bundle, **settings)
        assert vlm.backend_name == "onnxruntime"
        result = vlm.generate("What?", random_image(0), max_new_tokens=1)
        assert result.backend == result.to_json()["backend"] == "onnxruntime"


def test_batches_are_as_large_as_the_engines_allow(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five prompts on engines for two."""
    cpu = open_backend(open_bundle(bundle), CPU)
    monkeypatch.setattr(backends, "open_backend", lambda *_: OpenedBackend("tensorrt", cpu.backend, max_batch=2))
    vlm = Pipeline(bundle)
    spy = Spy.on(vlm)
    prompts, images = [random_prompt(seed) for seed in range(5)], [random_image(seed) for seed in range(5)]
    settings: dict[str, Any] = {"max_new_tokens": 3, "ignore_eos": True}
    found = vlm.generate(prompts, images, **settings)
    assert [call.slot for call in spy.decoder if call.is_prefill] == [0, 1, 0, 1, 0]
    assert spy.batches == [2, 2, 2, 2, 1, 1]
    alone = Pipeline(bundle, threads=1)
    for result, prompt, image in zip(found, prompts, images, strict=True):
        assert result.token_ids == alone.generate(prompt, image, **settings).token_ids


def test_nothing_heavy_is_imported_for_the_cpu(bundle: Path) -> None:
    """Without engines and GPU a bundle opens without TensorRT and CUDA.  (transformers imports torch, which imports cuda.)"""
    code = (
        "import sys; from sts_export.bundle.manifest import open_bundle; from sts_export.backends import choice as backends\n"
        f"backends.count_gpus = lambda: 0; print(backends.open_backend(open_bundle({str(bundle)!r})).name)\n"
        "heavy = {'tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'polygraphy', 'transformers'}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "onnxruntime\n[]\n"
