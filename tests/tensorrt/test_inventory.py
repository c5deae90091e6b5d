"""What `inspect` says of engines: which, for what, how large, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from sts_export.bundle.manifest import Bundle, open_bundle
from sts_export.tensorrt.inventory import command_files, describe_engines, engine_lines
from sts_export.tensorrt.record import (
    BuildRecord,
    EngineRecord,
    PluginLibrary,
    bundle_digest,
    engines_folder,
    write_record,
)
from tests.support.bundles import GRAPHS


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def record(bundle: Bundle) -> BuildRecord:
    engine = EngineRecord("x.engine", 2_500_000, "0", "key", 1.5, True, True, False)
    return BuildRecord(
        runtime="tensorrt",
        tensorrt="10.3.0.26",
        target="orin-sm_87",
        gpu="Orin",
        platform="linux-aarch64",
        bundle=bundle_digest(bundle),
        max_batch=4,
        plugins=PluginLibrary("libsts_plugins.so", "0"),
        graphs=dict.fromkeys(GRAPHS, engine),
    )


def write(bundle: Bundle, item: BuildRecord) -> None:
    folder = engines_folder(bundle, item.runtime, item.target)
    folder.mkdir(parents=True)
    write_record(folder, item)


def test_nothing_to_say(copy: Bundle) -> None:
    assert engine_lines(copy) == []
    assert describe_engines(copy) == []


def test_a_line_for_each_set_of_engines(copy: Bundle) -> None:
    whole = record(copy)
    write(copy, whole)
    write(copy, dataclasses.replace(whole, runtime="tensorrt-rtx", tensorrt="1.7", target="portable", gpu=None, plugins=None))
    first, second = engine_lines(copy)
    assert first == "tensorrt 10.3.0.26, for Orin, linux-aarch64, batches up to 4, 10.0 MB, with plugins"
    assert second.startswith("tensorrt-rtx 1.7, for any GPU from Ampere on, ") and second.endswith("without plugins")
    assert describe_engines(copy) == [("engines", first), ("engines", second)]


def test_what_is_wrong_with_them(copy: Bundle) -> None:
    whole = record(copy)
    write(copy, dataclasses.replace(whole, graphs={"selector": whole.graphs["selector"]}))
    write(copy, dataclasses.replace(whole, target="other", bundle="0"))
    broken = engines_folder(copy, "tensorrt", "broken")
    broken.mkdir()
    (broken / "build.json").write_text("{")
    damaged, unfinished, foreign = engine_lines(copy)  # by folder: broken, orin-sm_87, other
    assert damaged == "engines/tensorrt/broken: no build record that this version reads"
    assert unfinished.endswith("2.5 MB, with plugins, unfinished (vision_encoder, llm_lower, llm_upper missing)")
    assert foreign.endswith("of another export")


def test_commands_by_version(copy: Bundle) -> None:
    (copy.folder / "engines").mkdir()
    expected = [f"engines/commands-tensorrt-{version}.sh" for version in ("9.2", "10.3", "10.15", "11.1", "rtx")]
    for file in reversed(expected):
        (copy.folder / file).touch()
    assert command_files(copy) == expected
    assert describe_engines(copy) == [("commands", ", ".join(expected))]
