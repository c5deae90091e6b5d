"""A family is told by its own files alone."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
import transformers

import sts_export
from sts_export.families import aliases, families, image_processors, titles
from sts_export.families.towers import towers
from sts_export.reference.model import families as reference_families

PACKAGE = Path(sts_export.__file__).parent
# Where a family or a tower has its files; each of them is named after it.
HOMES = ("families", "reference/families", "testing")


def other_files() -> list[Path]:
    homes = [PACKAGE / home for home in HOMES]
    return [file for file in PACKAGE.rglob("*.py") if not any(file.is_relative_to(home) for home in homes)]


def test_no_other_module_knows_a_family_or_a_tower_by_name() -> None:
    names = {*families(), *towers()}
    configs = {tower.config.__name__ for tower in towers().values()}
    media = PACKAGE / "media"  # ways from pictures to a tower's inputs, which towers name
    for file in other_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and node.value in names), f"{file}:{node.lineno}"
            known = isinstance(node, ast.Name) and node.id in configs
            assert not known or file.is_relative_to(media), f"{file}: {ast.unparse(node)}"


def test_every_family_has_a_reference() -> None:
    assert list(families()) == reference_families()
    assert {"llava", "llava_next", "qwen2_5_vl"} <= families().keys()


@pytest.mark.parametrize("name", families())
def test_names_are_transformers(name: str) -> None:
    family = families()[name]
    assert transformers.CONFIG_MAPPING[name].model_type == name
    assert getattr(transformers, family.architecture).config_class is transformers.CONFIG_MAPPING[name]
    assert all(hasattr(transformers, kind) for kind in family.image_processors.values())


def test_names_of_families_do_not_collide() -> None:
    shared = Counter(alias for family in families().values() for alias in family.aliases)
    assert shared.keys() == aliases().keys() and set(shared.values()) == {1}
    assert len(image_processors()) == sum(len(family.image_processors) for family in families().values())
    assert titles() == (
        "LLaVA-1.5 (CLIP tower, Llama decoder), LLaVA-NeXT (CLIP tower, Llama or Mistral decoder) and Qwen2.5-VL"
    )
