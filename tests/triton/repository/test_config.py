"""config.pbtxt by protobuf's own parser and Triton's own message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sts_export.bundle.manifest import open_bundle
from sts_export.triton.settings import ModelSettings, read_parameters
from sts_export.triton.tensors import ENCODER_INPUTS, INPUTS, OUTPUTS, encoder_outputs
from tests.triton.repository.helpers import MODEL, write

text_format = pytest.importorskip("google.protobuf.text_format")
messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def read(repository: Path, model: str = MODEL) -> Any:
    """Unknown fields and wrong types are errors."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(encoding="utf-8"), messages.ModelConfig())


def parameters(config: Any) -> dict[str, str]:
    return {key: item.string_value for key, item in config.parameters.items()}


def shapes(tensors: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.name, messages.DataType.Name(one.data_type), tuple(one.dims)) for one in tensors]


def test_the_usual(bundle: Path, tmp_path: Path) -> None:
    config = read(write(bundle, tmp_path / "repository"))
    assert (config.name, config.backend, config.max_batch_size) == (MODEL, "python", ModelSettings().slots)
    assert config.model_transaction_policy.decoupled
    assert shapes(config.input) == [(one.name, one.kind, one.dims) for one in INPUTS]
    assert all(one.optional for one in config.input)
    assert shapes(config.output) == [(one.name, one.kind, one.dims) for one in OUTPUTS]
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind), list(group.gpus)) == (1, "KIND_CPU", [])
    assert read_parameters(parameters(config)) == ModelSettings(backend="onnxruntime")


def test_everything_that_can_be_set(bundle: Path, tmp_path: Path) -> None:
    """Text that needs escapes, too, comes back as it was."""
    pictures = tmp_path / 'ä "quoted" 漢'
    pictures.mkdir()
    repository = write(
        bundle,
        tmp_path / "repository",
        slots=3,
        max_queue_size=5,
        longest_wait=2.5,
        gpus=(0, 2),
        instances=2,
        backend="onnxruntime-cuda",
        feature_cache=0,
        reuse_prefixes=False,
        allow_image_hosts=("example.org", "*.example.com"),
        allow_image_folder=pictures,
        max_picture=1000,
    )
    config = read(repository)
    assert config.max_batch_size == 3
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind), list(group.gpus)) == (2, "KIND_GPU", [0, 2])
    assert read_parameters(parameters(config)) == ModelSettings(
        backend="onnxruntime-cuda",
        slots=3,
        max_queue_size=5,
        longest_wait=2.5,
        feature_cache=0,
        reuse_prefixes=False,
        allow_image_hosts=("example.org", "*.example.com"),
        allow_image_folder=str(pictures),
        max_picture=1000,
    )


def test_the_model_of_features(bundle: Path, tmp_path: Path) -> None:
    config = read(write(bundle, tmp_path / "repository", with_encoder=True, threads=1), f"{MODEL}-encoder")
    assert (config.name, config.max_batch_size) == ("m-encoder", 0)
    assert not config.model_transaction_policy.decoupled
    assert shapes(config.input) == [(one.name, one.kind, one.dims) for one in ENCODER_INPUTS]
    width = open_bundle(bundle).manifest.model.decoder.hidden_size
    assert shapes(config.output) == [(one.name, one.kind, one.dims) for one in encoder_outputs(width)]
    known = {"bundle", "backend", "threads", "allow_image_hosts", "allow_image_folder", "max_picture"}
    assert set(parameters(config)) == known
    settings = read_parameters(parameters(config))
    assert (settings.bundle, settings.threads) == ("../../m/1/bundle", 1)
    assert settings.bundle_folder(tmp_path / "repository/m-encoder/1").resolve() == tmp_path / "repository/m/1/bundle"
