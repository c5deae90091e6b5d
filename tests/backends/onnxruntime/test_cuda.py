"""ONNX Runtime on CUDA as far as that goes without a GPU.

The fake runs everything that is asked of CUDA on the CPU, so that the backend's whole path is taken (graphs rewritten for
CUDA, tensors filled, joined, bound and fetched as on a GPU); what CUDA's kernels compute is not shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from sts_export import Pipeline
from sts_export.backends.choice import OpenedBackend
from sts_export.backends.onnxruntime import sessions as onnxruntime_sessions
from sts_export.backends.onnxruntime.backend import OnnxRuntimeBackend
from sts_export.backends.onnxruntime.sessions import CUDA_PROVIDER, SDPA_KERNEL, SessionFactory, guarded
from sts_export.bundle.manifest import open_bundle
from sts_export.errors import BackendError
from sts_export.reference import ReferenceModel, generate
from sts_export.testing.checkpoints import random_image, random_prompt
from tests.backends.onnxruntime.fake_gpu import FakeGpu
from tests.support.parity import TOLERANCE, relative_error
from tests.support.pipelines import NEW, export_to

pytestmark = pytest.mark.usefixtures("no_libraries")
INSTALL = "pip install 'sts-export[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"


def test_answers_are_those_of_the_reference(faked: FakeGpu, bundle: Path, checkpoint: Path) -> None:
    """One image, two, none; kept sets, tokens and logits in float32."""
    vlm, model = Pipeline(bundle, backend="onnxruntime-cuda"), ReferenceModel.open(checkpoint)
    assert vlm.backend_name == "onnxruntime-cuda"
    for seed, images in enumerate([[random_image(0)], [random_image(1)], []]):
        prompt = random_prompt(seed)
        actual = vlm.generate(prompt, images, max_new_tokens=NEW, ignore_eos=True)
        wanted = generate(model, prompt, images, vlm.manifest.pruning, NEW, ignore_eos=True)
        assert actual.token_ids == wanted.token_ids and actual.kept_stage2 == wanted.kept_stage2
        assert actual.kept_stage1 == wanted.kept_stage1 and actual.backend == "onnxruntime-cuda"
        logits = vlm.score(prompt, images, actual.token_ids)
        assert relative_error(logits, wanted.logits) < TOLERANCE
    assert faked.devices == {"cuda", "cpu"}


def test_batches_and_several_images(faked: FakeGpu, checkpoint: Path, tmp_path: Path) -> None:
    """Embeddings of several images, and of several requests, go through one buffer."""
    made = export_to(checkpoint, tmp_path / "bundle", max_visual_tokens=72)
    vlm, model = Pipeline(made, backend="onnxruntime-cuda"), ReferenceModel.open(checkpoint)
    pictures = [[random_image(0), random_image(1)], [random_image(2), random_image(3)], [random_image(4)]]
    prompts = [random_prompt(seed) for seed in range(3)]
    found = vlm.generate(prompts, pictures, max_new_tokens=6, ignore_eos=True)
    for result, prompt, images in zip(found, prompts, pictures, strict=True):
        wanted = generate(model, prompt, images, vlm.manifest.pruning, 6, ignore_eos=True)
        assert (result.token_ids, result.kept_stage2) == (wanted.token_ids, wanted.kept_stage2)


def test_float16_takes_the_fused_attention(faked: FakeGpu, checkpoint: Path, tmp_path: Path) -> None:
    """Its logits lie as close to the reference's as float16 allows; caches hold half the bytes."""
    vlm = Pipeline(export_to(checkpoint, tmp_path / "bundle", dtype="float16"), backend="onnxruntime-cuda")
    prompt, images = random_prompt(1), [random_image(5)]
    actual = vlm.generate(prompt, images, max_new_tokens=8, ignore_eos=True)
    wanted = generate(
        ReferenceModel.open(checkpoint),
        prompt,
        images,
        vlm.manifest.pruning,
        8,
        kept_stage1=actual.kept_stage1,
        kept_stage2=actual.kept_stage2,
        forced_tokens=actual.token_ids,
    ).logits.numpy()
    logits = vlm.score(prompt, images, actual.token_ids)
    assert np.abs(logits - wanted).max() <= 3e-2 * np.abs(wanted).max()
    decoder, capacities = vlm.manifest.model.decoder, vlm.manifest.capacities
    assert actual.kv_cache_bytes.lower == 2 * 2 * 2 * decoder.num_kv_heads * decoder.head_dim * capacities.rows[0]


def test_pixels_are_not_cast_on_the_host(faked: FakeGpu, checkpoint: Path, tmp_path: Path) -> None:
    """Processors make float32 ones, and the session takes them so; between graphs tensors stay float16."""
    backend = OnnxRuntimeBackend(open_bundle(export_to(checkpoint, tmp_path / "bundle", dtype="float16")), device="cuda")
    firsts = {name: session.get_inputs()[0] for name, session in backend._sessions.items()}
    assert (firsts["vision_encoder"].name, firsts["vision_encoder"].type) == ("pixel_values", "tensor(float)")
    assert (firsts["selector"].name, firsts["selector"].type) == ("visual_features", "tensor(float16)")


def test_settings_of_the_sessions(faked: FakeGpu, bundle: Path) -> None:
    """TF32 would not be float32; a doubling arena would take twice the memory."""
    Pipeline(bundle, backend="onnxruntime-cuda")
    assert len(faked.options) == 4 and faked.threads == [1] * 4
    assert all(settings["use_tf32"] == "0" for settings in faked.options)
    assert all(settings["arena_extend_strategy"] == "kSameAsRequested" for settings in faked.options)
    assert all(settings["sdpa_kernel"] == SDPA_KERNEL for settings in faked.options)


def test_a_backend_that_was_opened_before(faked: FakeGpu, vlm: Pipeline, bundle: Path) -> None:
    """With other attention kernels, which no command chooses; a pipeline takes it as it is."""
    backend = OnnxRuntimeBackend(open_bundle(bundle), device="cuda", sdpa_kernel="0")
    assert [settings["sdpa_kernel"] for settings in faked.options] == ["0"] * 4
    opened = Pipeline(bundle, backend=OpenedBackend("onnxruntime-cuda", backend, operators="its.so"))
    assert len(faked.options) == 4  # nothing is opened again
    result = opened.generate("Describe it.", random_image(3), max_new_tokens=4)
    assert (result.backend, result.operators) == ("onnxruntime-cuda", "its.so")
    assert result.token_ids == vlm.generate("Describe it.", random_image(3), max_new_tokens=4).token_ids


def test_features_come_back(vlm: Pipeline, faked: FakeGpu, bundle: Path) -> None:
    features = Pipeline(bundle, backend="onnxruntime-cuda").features(random_image(3))
    np.testing.assert_allclose(features["visual_features"], vlm.features(random_image(3))["visual_features"], atol=1e-5)


# What stands in the way


def refusal(bundle: Path) -> str:
    with pytest.raises(BackendError) as caught:
        Pipeline(bundle, backend="onnxruntime-cuda")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_provider(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert refusal(bundle) == f"this ONNX Runtime has no CUDA provider: {INSTALL}"


def test_without_a_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA_PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_sessions, "count_gpus", lambda: 0)
    assert "there is no CUDA GPU" in refusal(bundle) and "--backend onnxruntime" in refusal(bundle)


@pytest.mark.parametrize(
    ("said", "raised", "wanted"),
    [
        (
            "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file\nPlease follow ...\n",
            "CUDA Provider not available",
            "(Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file)",
        ),
        (
            "",
            "cuda_call.cc:154 CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1",
            "(CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version)",
        ),
    ],
)
def test_a_gpu_that_does_not_work(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], said: str, raised: str, wanted: str
) -> None:
    """Texts as ONNX Runtime 1.31.1 with CUDA 13 gives them; it prints to the standard output, which is the answer's."""

    def fail(*_: Any) -> Any:
        raise RuntimeError(raised)

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA_PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_sessions, "count_gpus", lambda: 1)
    monkeypatch.setattr(ort, "preload_dlls", lambda: print(said, end=""))
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", fail)
    error = refusal(bundle)
    assert f"ONNX Runtime cannot use CUDA {wanted};" in error and INSTALL in error
    assert capfd.readouterr() == ("", "")


def test_a_session_on_the_cpu_is_refused(faked: FakeGpu, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime takes the CPU if CUDA does not start, and only logs it."""
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    assert "does not start its CUDA provider" in refusal(bundle)


def test_quantized_bundles_run_on_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    made = export_to(checkpoint, tmp_path / "bundle", quantize="int8")
    with pytest.raises(BackendError, match=r"int8 bundles run on the CPU; use --backend onnxruntime, or export without"):
        OnnxRuntimeBackend(open_bundle(made), device="cuda")


@pytest.mark.parametrize(
    "text",
    [
        "bfc_arena.cc:359 Failed to allocate memory for requested buffer of size 1073741824",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc((void**)&p, size);",
    ],
)
def test_out_of_memory(text: str) -> None:
    def fail() -> None:
        raise RuntimeError(text)

    with pytest.raises(BackendError, match="not enough GPU memory: end what else uses the GPU, run fewer requests"):
        guarded("cuda", fail)
    with pytest.raises(BackendError, match="not enough memory: run fewer requests together"):
        guarded("cpu", fail)


def test_a_failure_names_both_ways_out() -> None:
    def fail() -> None:
        raise RuntimeError("cuDNN is unavailable for CUDA Execution Provider:\n dlopen failed for libcudnn.so")

    with pytest.raises(BackendError) as caught:
        guarded("cuda", fail)
    error = str(caught.value)
    assert "\n" not in error and INSTALL in error and "--backend onnxruntime" in error


@pytest.mark.skipif(CUDA_PROVIDER in ort.get_available_providers(), reason="this onnxruntime has the CUDA provider")
def test_the_plain_package_says_what_to_install() -> None:
    with pytest.raises(BackendError, match="no CUDA provider: pip install 'sts-export"):
        SessionFactory("cuda")
