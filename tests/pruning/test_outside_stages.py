"""Stages of another package: exported, run, inspected and verified from the command line; and what goes wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from sts_export.errors import BudgetError, RequestError
from sts_export.json_records import decode, encode
from sts_export.lowering.tensorrt import lower
from sts_export.pruning.choosing import config_for_budget
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.registry import own_stage_names
from sts_export.verification.answers import verify
from tests.support.outside_stages import REFERENCE, command, write_distribution

FUNCTIONS = {"selector": ["EdgeRows"], "llm_lower": []}  # the other stage adds its nodes without a function
PICTURE = Path(__file__).parents[2] / "sts_export" / "demo" / "pictures" / "scene-0.png"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_distribution(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def bundle(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with both stages, whose settings are not the defaults."""
    output = tmp_path_factory.mktemp("outside") / "bundle"
    stages = ("--stage1", "edge:end=last,skip=100", "--stage2", "largest-key:power=3")
    made = command("--model", "demo", "--keep", "90,30", *stages, "--output", str(output), path=installed)
    assert (made.returncode, made.stderr) == (0, "")
    return output


def test_it_keeps_what_the_stages_say(installed: Path, bundle: Path) -> None:
    asked = ("--image", str(PICTURE), "--prompt", "What color is the circle?", "--backend", "onnxruntime")
    result = command("run", str(bundle), *asked, "--max-new-tokens", "2", "--json", path=installed)
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert answer["kept_stage1"] == [list(range(576 - 90, 576))]
    assert len(answer["kept_stage2"]) == 30 and set(answer["kept_stage2"]) <= set(answer["kept_stage1"][0])


def test_it_is_verified_by_its_own_reference(installed: Path, bundle: Path) -> None:
    result = command("verify", str(bundle), "--pairs", "1", "--max-new-tokens", "4", "--json", path=installed)
    assert result.returncode == 0, result.stderr
    (pair,) = json.loads(result.stdout)["pairs"]
    assert pair["stage1_equal"] and pair["stage2_equal"] and pair["tokens_equal"]


def test_the_manifest_names_stages_settings_and_package(installed: Path, bundle: Path) -> None:
    pruning = json.loads((bundle / "manifest.json").read_text())["pruning"]
    assert pruning["method"] == "edge+largest-key"
    assert pruning["stage1"] == {"name": "edge", "settings": {"end": "last", "skip": 100}, "package": "thin-stages"}
    assert pruning["stage2"] == {"name": "largest-key", "settings": {"power": 3.0}, "package": "thin-stages"}
    shown = command("inspect", str(bundle), path=installed).stdout
    assert "edge (end last, skip 100)" in shown and "largest-key (power 3.0)" in shown


def test_older_tensorrt_gets_their_operators_and_no_plugins(bundle: Path) -> None:
    for name in ("selector", "llm_lower"):
        graph = (bundle / f"{name}.onnx").read_bytes()
        assert [function.name for function in onnx.load_from_string(graph).functions] == FUNCTIONS[name]
        for version, functions in (((10, 3), []), ((10, 15), FUNCTIONS[name])):
            model = onnx.load_from_string(lower(graph, version, plugins=True).graph)
            assert [function.name for function in model.functions] == functions
            assert {node.domain for node in model.graph.node} == ({"", "sts"} if functions else {""})
            assert not any(attribute.name == "plugin_version" for node in model.graph.node for attribute in node.attribute)
            assert {item.domain for item in model.opset_import} >= {node.domain for node in model.graph.node}


def test_where_the_package_is_not_installed(bundle: Path) -> None:
    result = command("inspect", str(bundle))
    expected = "stage 1 'edge' comes with the package 'thin-stages', which is not installed here: install it"
    assert result.returncode == 2 and expected in result.stderr and result.stderr.count("\n") == 1


def test_without_a_reference_there_is_nothing_to_verify_with(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_distribution(tmp_path, reference={"stage1.edge": REFERENCE["stage1.edge"]})
    monkeypatch.syspath_prepend(path)
    with pytest.raises(RequestError) as caught:
        verify(bundle, pairs=1)
    assert "stage 2 'largest-key' has no PyTorch reference to compare with" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_of_another_package(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    config = config_for_budget("60", num_visual_tokens=576, num_layers=8, method="thin", skip=5)
    assert (config.method, config.ratio, config.keep_stage1, config.keep_stage2) == ("thin", 0.5, 80, 40)
    data = json.loads(json.dumps(encode(config)))
    assert (data["stage1"]["settings"], data["stage2"]["settings"]) == ({"end": "last", "skip": 5}, {"power": 1.0})
    assert decode(PruningConfig, data) == config
    with pytest.raises(BudgetError, match="--stage1 repulsion is not that of method thin"):
        config_for_budget("60", num_visual_tokens=576, num_layers=8, method="thin", stage1="repulsion")


def test_they_are_listed(installed: Path) -> None:
    listed = command("--list-methods", path=installed)
    assert listed.returncode == 0 and listed.stderr == ""
    for expected in ("sts-s", "thin ", "repulsion", "edge", "end=first|last (default: first)", "power=float (default: 2.0)"):
        assert expected in listed.stdout
    own = ", ".join(own_stage_names("stage1"))
    assert f"one of {own}, edge" in " ".join(command("--help", path=installed).stdout.split())
