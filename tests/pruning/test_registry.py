"""Stages and methods are found by name; what other packages do wrong is one line that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

import sts_export.reference.pruning
from sts_export.cli.commands.export import make_parser
from sts_export.errors import BudgetError, RequestError
from sts_export.pruning import registry
from sts_export.pruning.choosing import list_methods
from sts_export.pruning.methods import METHODS
from sts_export.pruning.registry import find_method, find_stage1, find_stage2, method_names, own_stage_names, stage_names
from sts_export.pruning.settings import make_stage, split_spec
from sts_export.reference import find_stage1 as reference_of_stage1
from sts_export.reference import find_stage2 as reference_of_stage2
from tests.support.outside_stages import write_distribution

_GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from sts_export.pruning.stage import Stage1, Stage2

@dataclass(frozen=True)
class {name}({base}):
    name: ClassVar[str] = "{stage}"
    summary: ClassVar[str] = "of a test"
"""

_ODD = _GOOD.format(name="Odd", base="Stage1", stage="odd")


def files(kind: str) -> list[str]:
    """Stages by the files of their folder."""
    folder = Path(registry.__file__).parent / kind
    return sorted(file.stem.replace("_", "-") for file in folder.glob("[!_]*.py"))


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error) and len(str(error)) < 500
    return str(error)


def files_of(folder: Path) -> set[str]:
    return {file.stem.replace("_", "-") for file in folder.glob("*.py")} - {"--init--"}


@pytest.mark.parametrize("kind", ["stage1", "stage2"])
def test_every_file_is_a_stage_of_its_name_on_both_sides(kind: registry.Kind) -> None:
    names = own_stage_names(kind)
    assert set(names) == files_of(Path(registry.__file__).parent / kind)
    assert set(names) == files_of(Path(sts_export.reference.pruning.__file__).parent / kind)
    for name in names:
        stage = find_stage1(name) if kind == "stage1" else find_stage2(name)
        assert stage.name == name and stage.summary
        assert make_stage(stage, {}).needs <= {"cls_attention", "own_query_key", "next_query_key"}
        assert callable(reference_of_stage1(name) if kind == "stage1" else reference_of_stage2(name))


def test_every_method_is_a_pair_of_stages() -> None:
    for method in METHODS:
        assert find_method(method.name) is method
        find_stage1(split_spec(method.stage1)[0])
        find_stage2(split_spec(method.stage2)[0])
    assert [method.name for method in METHODS] == ["sts", "sts-s"]


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    for find, expected in (
        (find_stage1, f"unknown stage 1 'x y': choose one of {', '.join(files('stage1'))}"),
        (find_stage2, f"unknown stage 2 'x y': choose one of {', '.join(files('stage2'))}"),
        (find_method, "unknown method 'x y': choose one of sts, sts-s"),
    ):
        with pytest.raises(BudgetError) as caught:
            find("x y")
        assert expected in one_line(caught.value)
    for name in ("", "..", "keep_all", "__init__", "a.b", "repulsion\n"):
        with pytest.raises(BudgetError, match="unknown stage 1"):
            find_stage1(name)
        with pytest.raises(RequestError, match="has no PyTorch reference"):
            reference_of_stage1(name)


BROKEN: dict[str, tuple[str, str]] = {
    "import-fails": ("import nothing_of_this_name", "(ModuleNotFoundError: No module named 'nothing_of_this_name')"),
    "raises": ("raise RuntimeError('two\\nlines')", "cannot be loaded (RuntimeError: two lines)"),
    "no-such-object": ("", "cannot be loaded (AttributeError: "),
    "no-stage": ("Odd = 5", "is no dataclass that extends sts_export.pruning.stage.Stage1"),
    "of-the-other-kind": (_GOOD.format(name="Odd", base="Stage2", stage="odd"), "extends sts_export.pruning.stage.Stage1"),
    "without-summary": (
        _ODD.replace("summary", "summery") + "    def build(self, op, inputs): ...\n",
        "lacks a summary or a method build",
    ),
    "without-build": (_ODD, "lacks a summary or a method build"),
    "of-odd-settings": (
        _GOOD.format(name="Odd", base="Stage1", stage="odd") + "    step: int | None = None\n",
        "written (step)",
    ),
    "of-another-name": (_GOOD.format(name="Odd", base="Stage1", stage="even"), "has another name in itself"),
}


@pytest.mark.parametrize(("module", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_package_is_named(
    module: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"broken-{request.node.callspec.id}"
    entries = {"stage1.odd": f"{name.replace('-', '_')}.stages:Odd"}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, name, {"stages": module}, entries, entries))
    with pytest.raises(BudgetError) as caught:
        find_stage1("odd")
    message = one_line(caught.value)
    assert expected in message and f"stage 1 'odd' of the package {name}" in message and "mend" in message
    # Nobody else is harmed.
    assert find_stage1("repulsion").name == "repulsion"
    assert "odd" in stage_names("stage1") and "odd" not in method_names()
    listed = list_methods()
    assert message in listed and find_stage1("repulsion").summary in listed


def test_names_of_others_in_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """argparse formats its help: a percent sign in it must not be taken for one of its own."""
    entries = {"stage1.top-50%": "nowhere:X", "method.": "nowhere:Y"}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, "percent", {}, entries, {}))
    assert f"{stage_names('stage1')[-2]}, top-50%" in " ".join(make_parser().format_help().split())
    assert "" not in method_names()


def test_a_stage_that_keeps_all_has_a_graph_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows pass through a stage whatever it keeps."""
    entries = {f"{kind}.odd": f"whole.{kind}:Odd" for kind in ("stage1", "stage2")}
    sources = {
        kind: _GOOD.format(name="Odd", base=base, stage="odd") for kind, base in (("stage1", "Stage1"), ("stage2", "Stage2"))
    }
    whole = {kind: source + "    keeps_all: ClassVar[bool] = True\n" for kind, source in sources.items()}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, "whole", whole, entries, {}))
    for find in (find_stage1, find_stage2):
        with pytest.raises(BudgetError, match="lacks a summary or a method build"):
            find("odd")


def test_two_packages_with_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("twin-a", "twin-b"):
        stage = _GOOD.format(name="Odd", base="Stage2", stage="odd")
        entries = {"stage2.odd": f"{name.replace('-', '_')}.stages:Odd"}
        monkeypatch.syspath_prepend(write_distribution(tmp_path / name, name, {"stages": stage}, entries, {}))
    with pytest.raises(BudgetError) as caught:
        find_stage2("odd")
    assert one_line(caught.value) == "stage 2 'odd' is brought by several packages (twin-a, twin-b): uninstall all but one"


def test_our_own_stages_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _GOOD.format(name="Mine", base="Stage1", stage="repulsion")
    entries = {"stage1.repulsion": "usurper.stages:Mine"}
    monkeypatch.syspath_prepend(write_distribution(tmp_path, "usurper", {"stages": stage}, entries, {}))
    assert find_stage1("repulsion").__module__ == "sts_export.pruning.stage1.repulsion"
    assert stage_names("stage1").count("repulsion") == 1
    assert registry.package_of("stage1", "repulsion") is None


def test_plugins_are_those_of_the_stages() -> None:
    assert registry.plugin_names() == ("RepulsionSelect", "LastTokenTopK")
