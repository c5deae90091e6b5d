"""The inputs that a bundle brings along for Polygraphy: what the graphs take, and enough to compare two engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from sts_export.bundle.manifest import Bundle
from sts_export.errors import RequestError
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.lowering.tensorrt import lower
from sts_export.tensorrt.portable.sample_inputs import Case, cases_of, sample_request, write_inputs
from sts_export.tensorrt.profiles import profiles, shapes
from tests.support.bundles import export_to
from tests.support.sample_cases import CASES

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def written(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, ModuleType]:
    """A float16 bundle with its inputs, and their script loaded as Polygraphy loads it: from the bundle, not the package."""
    folder = tmp_path_factory.mktemp("inputs") / "bundle"
    bundle = export_to(checkpoints[request.param], folder, "float16", max_prompt_tokens=90)
    return bundle, load(write_inputs(bundle))


def load(folder: Path) -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("inputs_of_bundle", folder / "inputs.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def feeds_of(module: ModuleType, case: Case) -> dict[str, np.ndarray[Any, Any]]:
    yielded = getattr(module, case.name)()
    assert isinstance(yielded, Iterator)
    (feeds,) = yielded
    return dict(feeds)


def run(bundle: Bundle, graph: bytes, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.folder.resolve()))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inputs_fit_graph_and_engine(written: tuple[Bundle, ModuleType], case: Case) -> None:
    bundle, module = written
    contract, feeds = bundle.manifest.graphs[case.graph], feeds_of(module, case)
    profile = profiles(bundle.manifest, case.graph, 1)[case.profile]
    assert list(feeds) == [spec.name for spec in contract.inputs]
    bound: dict[str, int] = {}
    for spec in contract.inputs:
        array = feeds[spec.name]
        assert str(array.dtype) == spec.dtype
        for size, found in zip(spec.shape, array.shape, strict=True):
            assert found == (bound.setdefault(size, found) if isinstance(size, str) else size), spec.name
        least, _, largest = shapes(spec, profile)
        assert all(low <= size <= high for low, size, high in zip(least, array.shape, largest, strict=True)), spec.name
    again = feeds_of(module, case)
    assert all(np.array_equal(array, again[name]) for name, array in feeds.items())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_another_form_of_the_graph_agrees(written: tuple[Bundle, ModuleType], case: Case, capsys: Any) -> None:
    bundle, module = written
    graph, feeds = bundle.graph_file(case.graph).read_bytes(), feeds_of(module, case)
    reference = run(bundle, graph, feeds)
    found = module.compare(run(bundle, lower(graph, (10, 3), plugins=False).graph, feeds), reference)
    assert set(found) == set(reference) and all(found.values())
    assert capsys.readouterr().out.count(", passed") == len(reference)
    for name, array in reference.items():
        assert np.isfinite(array).all(), name
        spoiled = {**reference, name: array + (1 if array.dtype == np.int64 else np.abs(array).max())}
        assert not module.compare(spoiled, reference)[name], name


def test_every_part_has_a_prefill_and_a_decode_case(written: tuple[Bundle, ModuleType]) -> None:
    assert cases_of(written[0].manifest) == CASES


def test_the_prompt_is_a_real_one(written: tuple[Bundle, ModuleType]) -> None:
    bundle, module = written
    settings = json.loads((bundle.folder / "engines" / "polygraphy" / "inputs.json").read_text())
    feeds = feeds_of(module, CASES[2])
    assert np.count_nonzero(feeds["input_ids"] == VISUAL_ROW) == feeds["visual_embeds"].shape[1] == settings["kept"]
    assert len(feeds["stage2_slots"]) == settings["visual_keep"] <= settings["kept"]
    assert np.count_nonzero(feeds["input_ids"] >= 0) > 5
    assert feeds_of(module, CASES[4])["write_index"] == [feeds["input_ids"].shape[1]]
    quota = feeds_of(module, CASES[1])["quota"]
    assert quota.dtype == bool and quota.sum() == settings["kept"]


def test_the_script_stands_alone(written: tuple[Bundle, ModuleType]) -> None:
    """The machine with TensorRT need not have sts-export."""
    bundle, _ = written
    text = (bundle.folder / "engines" / "polygraphy" / "inputs.py").read_text()
    imports = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "json", "collections", "dataclasses", "pathlib", "typing", "numpy"}


def test_engines_take_whatever_prompt_fits_the_caches(bundle: Bundle) -> None:
    """A long prompt may cost the answer its rows; the profiles must not end before that."""
    largest = profiles(bundle.manifest, "llm_lower", 1)[0]["sequence"][2]
    rows: list[int] = []
    with pytest.raises(RequestError, match="2 new tokens do not fit"):
        for letters in range(10, 90):
            rows.append(len(sample_request(bundle, prompt="!" * letters).input_ids))
    assert rows[-1] == bundle.manifest.capacities.rows[0] - 1 < largest


def test_the_longest_of_our_prompts_that_fits(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    request = sample_request(export_to(checkpoints["llava"], tmp_path / "roomy", "float16", max_prompt_tokens=90))
    narrow = export_to(checkpoints["llava"], tmp_path / "narrow", "float16", max_prompt_tokens=14, max_new_tokens=1)
    shorter = sample_request(narrow)
    assert len(shorter.input_ids) < len(request.input_ids)
    with pytest.raises(RequestError, match="2 new tokens do not fit: after 9 text tokens there is room for 1"):
        sample_request(export_to(checkpoints["llava"], tmp_path / "full", "float16", max_prompt_tokens=8, max_new_tokens=1))
