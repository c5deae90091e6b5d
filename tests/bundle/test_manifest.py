"""Bundles on disk: what is written is what is read, and whatever happened to one since is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sts_export.bundle.description import as_text, describe
from sts_export.bundle.document import SCHEMA_VERSION
from sts_export.bundle.manifest import MANIFEST, Manifest, open_bundle
from sts_export.errors import BundleError
from sts_export.exporting.exporter import ExportRequest, export
from sts_export.testing.checkpoints import RandomLlava, write_random_llava
from tests.support.bundles import GRAPHS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint/, copied/ and linked/ of a tiny model; tests work on copies."""
    folder: Path = tmp_path_factory.mktemp("bundles")
    write_random_llava(folder / "checkpoint", RandomLlava(layers=2, vision_layers=2))
    export(ExportRequest(str(folder / "checkpoint"), folder / "copied", budget="12"))
    return folder


@pytest.fixture
def copied(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin / "copied", tmp_path / "copied"))


@pytest.fixture
def linked(origin: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A linked bundle and the checkpoint it links to."""
    source = Path(shutil.copytree(origin / "checkpoint", tmp_path / "checkpoint"))
    return export(ExportRequest(str(source), tmp_path / "linked", budget="12", weights="link")).folder, source


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder, **options)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    assert "export" in message or "restore" in message  # what to do
    return message


def test_round_trip(origin: Path) -> None:
    folder = origin / "copied"
    bundle = open_bundle(folder, check_all=True)
    written = json.loads((folder / MANIFEST).read_text())
    assert json.loads(json.dumps(bundle.manifest.to_json())) == written
    assert Manifest.from_json(written) == bundle.manifest
    assert written["schema_version"] == SCHEMA_VERSION == 3
    assert tuple(bundle.manifest.graphs) == GRAPHS
    assert bundle.weights_folder == folder
    recorded = {*bundle.manifest.graph_files.values(), *bundle.manifest.companions, *bundle.manifest.weights.files}
    assert {record.file for record in recorded} | {MANIFEST} == {file.name for file in folder.iterdir()}
    assert all(record.size == (folder / record.file).stat().st_size for record in recorded)


def test_round_trip_of_a_linked_bundle(linked: tuple[Path, Path]) -> None:
    folder, source = linked
    bundle = open_bundle(str(folder), check_all=True)
    assert bundle.weights_folder == source
    assert json.loads(json.dumps(bundle.manifest.to_json())) == json.loads((folder / MANIFEST).read_text())


def test_a_copied_bundle_moves(copied: Path, tmp_path: Path) -> None:
    shutil.move(copied, tmp_path / "elsewhere")
    open_bundle(tmp_path / "elsewhere", check_all=True)


FILES = [
    "vision_encoder.onnx",
    "selector.onnx",
    "llm_lower.onnx",
    "llm_upper.onnx",
    "weights.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is missing"),
    "altered": (flip, "sha256 differs"),
    "truncated": (shorten, "was altered: "),
    "longer": (lengthen, "was altered: "),
    "empty": (lambda file: file.write_bytes(b""), "0 bytes instead of"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("harm", "expected"), HARM.values(), ids=HARM.keys())
def test_harm_to_any_file_is_noticed(copied: Path, name: str, harm: Callable[[Path], object], expected: str) -> None:
    harm(copied / name)
    message = refusal(copied)
    assert expected in message and str(copied / name) in message


def test_large_files_are_hashed_only_on_request(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sts_export.bundle.records._HASH_ON_LOAD", 300_000)
    flip(copied / "weights.safetensors")
    open_bundle(copied)
    assert "sha256 differs" in refusal(copied, check_all=True)


def test_other_files_in_the_folder_do_not_matter(copied: Path) -> None:
    (copied / "engines").mkdir()
    (copied / "notes.txt").write_text("mine")
    open_bundle(copied, check_all=True)


def test_linked_checkpoint_gone(linked: tuple[Path, Path]) -> None:
    folder, source = linked
    source.rename(source.with_name("moved"))
    assert "model.safetensors is missing" in refusal(folder)


def test_linked_checkpoint_resized(linked: tuple[Path, Path]) -> None:
    folder, source = linked
    shorten(source / "model.safetensors")
    assert "was altered" in refusal(folder)


def test_linked_checkpoint_rewritten(linked: tuple[Path, Path]) -> None:
    """Same size, other layout of tensors: two of one shape have changed places."""
    folder, source = linked
    file = source / "model.safetensors"
    size = file.stat().st_size
    tensors = load_file(file)
    names = sorted(tensors)
    tensors["zzz"] = tensors.pop(names[0])
    save_file(tensors, file, metadata={"format": "pt"})
    content = file.read_bytes()
    file.write_bytes(content[:size].ljust(size, b"\0"))
    assert "was altered since the export that links to it" in refusal(folder)


def test_linked_checkpoint_damaged(linked: tuple[Path, Path]) -> None:
    folder, source = linked
    file = source / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert "was altered since the export that links to it" in refusal(folder)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert f"bundle {tmp_path / 'missing'} does not exist; check the path" in refusal(tmp_path / "missing")


@pytest.mark.parametrize("name", ["empty", "file"])
def test_what_is_no_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert "is not a bundle: it has no manifest.json" in refusal(tmp_path / name)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 1000, 10**30])
def test_newer_schemas_are_refused(copied: Path, version: int) -> None:
    rewrite(copied, lambda data: data.update(schema_version=version, unheard_of={}))
    message = refusal(copied)
    assert f"manifest schema {version}, this sts-export reads up to {SCHEMA_VERSION}; upgrade sts-export" in message


@pytest.mark.parametrize("version", [1, SCHEMA_VERSION - 1])
def test_older_schemas_are_refused(copied: Path, version: int) -> None:
    rewrite(copied, lambda data: data.update(schema_version=version))
    assert f"was written by an older sts-export (manifest schema {version}); export it again" in refusal(copied)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"schema_version": %d, "tools": {' % SCHEMA_VERSION,
    "not-utf8": b'{"schema_version": "\xff"}',
    "list": b"[1]",
    "null": b"null",
    "text": b'"schema_version"',
    "deep": b"[" * 100_000,
    "version-only": b'{"schema_version": %d}' % SCHEMA_VERSION,
    "version-text": b'{"schema_version": "1"}',
    "version-true": b'{"schema_version": true}',
    "version-zero": b'{"schema_version": 0}',
    "version-float": b'{"schema_version": 1.5}',
    "version-infinite": b'{"schema_version": 1e999}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_manifests(copied: Path, content: bytes) -> None:
    (copied / MANIFEST).write_bytes(content)
    assert "manifest.json is damaged" in refusal(copied)


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown-graph": lambda m: m["graphs"].update(extra=m["graphs"]["selector"]),
    "graph-renamed": lambda m: m["graphs"].update(lower=m["graphs"].pop("llm_lower")),
    "file-outside": lambda m: m["graphs"]["selector"].update(file="../copied/selector.onnx"),
    "file-absolute": lambda m: m["companions"][0].update(file="/etc/passwd"),
    "file-above": lambda m: m["companions"][0].update(file="templates/../../copied/config.json"),
    "file-without-name": lambda m: m["companions"][0].update(file="templates//config.json"),
    "weights-below": lambda m: m["weights"]["files"][0].update(file="weights/weights.safetensors"),
    "copy-with-folder": lambda m: m["weights"].update(folder="/tmp"),
    "link-without-folder": lambda m: m["weights"].update(mode="link"),
    "unknown-mode": lambda m: m["weights"].update(mode="move"),
    "unknown-dtype": lambda m: m.update(dtype="float8"),
    "other-n": lambda m: m["pruning"].update(num_visual_tokens=40),
    "other-depth": lambda m: m["pruning"].update(num_layers=3),
    "keep-too-many": lambda m: m["pruning"].update(keep_stage2=m["pruning"]["keep_stage1"] + 1),
    "capacity": lambda m: m["capacities"]["rows"].insert(0, m["capacities"]["rows"].pop(0) + 1),
    "capacity-forgotten": lambda m: m["capacities"]["rows"].pop(),
    "graphs-in-another-order": lambda m: m["graphs"].update(selector=m["graphs"].pop("selector")),
    "no-layers": lambda m: m["model"]["decoder"].update(num_layers=0),
    "caches-forgotten": lambda m: m["graphs"]["llm_lower"].update(caches=[]),
    "inputs-forgotten": lambda m: m["graphs"]["selector"].update(inputs=[]),
    "unknown-family": lambda m: m["model"].update(family="qwen"),
    "unknown-anchor": lambda m: m["pruning"]["stage1"]["settings"].update(anchor="last"),
    "setting-missing": lambda m: m["pruning"]["stage1"]["settings"].pop("epsilon"),
    "unknown-setting": lambda m: m["pruning"]["stage2"]["settings"].update(anchor="first"),
    "unknown-stage": lambda m: m["pruning"]["stage1"].update(name="repulsive"),
    "stage-of-another-method": lambda m: m["pruning"]["stage2"].update(name="keep-all", settings={}),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_manifests_that_contradict_themselves(copied: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite(copied, change)
    assert "damaged" in refusal(copied)


ABSENT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "stage": (
        lambda m: m["pruning"]["stage1"].update(name="thin", package="thin-stages"),
        "stage 1 'thin' comes with the package 'thin-stages', which is not installed here: install it",
    ),
    "method": (
        lambda m: m["pruning"].update(method="thinner"),
        "method 'thinner' is not installed here: install the package that brings it",
    ),
}


@pytest.mark.parametrize(("change", "expected"), ABSENT.values(), ids=ABSENT.keys())
def test_stages_and_methods_that_are_not_installed(
    copied: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    rewrite(copied, change)
    assert expected in refusal(copied)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and list index below ``data``."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> None:
    """Put ``value`` there, or nothing if it is ``...``."""
    for key in path[:-1]:
        data = data[key]
    if value is ...:
        del data[path[-1]]
    else:
        data[path[-1]] = value


def survives(folder: Path) -> bool:
    """Whether the bundle opens, and then can be described; otherwise the refusal is one line."""
    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        assert "\n" not in str(error)
        return False
    assert "visual tokens" in as_text(describe(bundle))
    return True


def passes_nothing_over(folder: Path) -> None:
    """The bundle is refused, or all that is in its manifest was read."""
    if survives(folder):
        written = json.loads((folder / MANIFEST).read_text())
        assert json.loads(json.dumps(open_bundle(folder).manifest.to_json())) == written


# Of these any part may be missing; what they say is for people.
OPEN_ENDED = {("tools",), ("companions",), ("source", "weights"), ("unused_weights",), ("unquantized_weights",)}


def test_no_single_change_of_the_manifest_breaks_the_reader(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry dropped, and replaced by values of other types: BundleError, or a bundle that can be described."""
    monkeypatch.setattr("sts_export.bundle.records._HASH_ON_LOAD", 0)  # for speed: the files do not change here
    text = (copied / MANIFEST).read_text()
    accepted: list[tuple[Any, ...]] = []
    refused = 0
    for path in places(json.loads(text)):
        changes: list[Any] = [..., None, "text", 2.5, [], {"a": None}]
        for value in changes:
            data = json.loads(text)
            replaced(data, path, value)
            (copied / MANIFEST).write_text(json.dumps(data))
            if survives(copied):
                accepted.append((path, value))
            else:
                refused += 1
    assert refused > 1000
    # Texts may be other texts and numbers other numbers; no part may be missing.
    assert {path[:-1] for path, value in accepted if value is ...} <= OPEN_ENDED


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ANY_JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_changes_of_the_manifest_break_the_reader(copied: Path, origin: Path, data: st.DataObject) -> None:
    """Several entries dropped, added or replaced by anything, and one byte altered."""
    manifest = json.loads((origin / "copied" / MANIFEST).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(manifest))))
        if data.draw(st.booleans()):
            path = (*path[:-1], data.draw(st.text())) if isinstance(path[-1], str) else path
        parent = manifest
        for key in path[:-1]:
            parent = parent[key]
        drop = data.draw(st.booleans()) and (path[-1] in parent or isinstance(parent, list))
        replaced(manifest, path, ... if drop else data.draw(ANY_JSON))
    (copied / MANIFEST).write_text(json.dumps(manifest))
    passes_nothing_over(copied)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_byte_of_the_manifest_breaks_the_reader(copied: Path, origin: Path, data: st.DataObject) -> None:
    content = bytearray((origin / "copied" / MANIFEST).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] = data.draw(st.integers(0, 255))
    else:
        del content[place : place + data.draw(st.integers(1, 100))]
    (copied / MANIFEST).write_bytes(content)
    passes_nothing_over(copied)


WRONG: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "type": (("capacities", "prompt_tokens"), "40", "$.capacities.prompt_tokens: expected int, got str"),
    "of-a-graph": (("graphs", "selector", "inputs", 0, "dtype"), 3, "$.graphs.selector.inputs[0].dtype: expected str, got int"),
    "budget": (("pruning", "budget"), "101%", "budget 36.36 is unreachable"),
    "no-settings": (("pruning", "stage1", "settings"), {}, "$.pruning.stage1: repulsion lacks the settings anchor, epsilon"),
    "unknown": (("model", "decoder", "layers"), 3, "$.model.decoder: object contains unknown field layers"),
    "missing": (("pruning", "ratio"), ..., "$.pruning: object missing required field ratio"),
    "range": (("model", "decoder", "num_layers"), 0, "$.model: layers 0 is not between 1 and 1024"),
    "contract": (("graphs", "llm_lower", "caches"), [], "$.graphs.llm_lower: other inputs, outputs or caches"),
    "path": (("companions", 0, "file"), "../x", "$.companions[0].file: '../x' is no name of a file in the folder"),
    "no-hash": (("companions", 0, "sha256"), None, "$.companions[0]: either sha256 or fingerprint"),
    "derived": (("pruning", "average"), 1.0, "$.pruning.average: 1.0, but the other fields make it"),
    "version": (("schema_version",), "2", "$.schema_version: not a number above 0"),
}


@pytest.mark.parametrize(("path", "value", "message"), WRONG.values(), ids=WRONG.keys())
def test_the_message_names_the_value(copied: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    rewrite(copied, lambda manifest: replaced(manifest, path, value))
    assert f"manifest.json is damaged ({message}" in refusal(copied)
