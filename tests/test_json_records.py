"""Dataclasses as JSON: whatever they hold comes back, and nothing else is taken."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sts_export.errors import BudgetError, BundleError
from sts_export.json_records import Form, RecordError, decode, encode, json_schema


@dataclass(frozen=True)
class Square:
    side: int
    kind: Literal["square"] = "square"


@dataclass(frozen=True)
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise BudgetError(f"radius {self.radius} is below 0")


class Colour:
    """An open type: not a dataclass."""

    def __init__(self, name: str) -> None:
        if name == "ultraviolet":
            raise BundleError("install the package that brings ultraviolet")
        if name not in ("red", "green"):
            raise KeyError(name)
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Colour) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class ColourRecord:
    name: str
    settings: dict[str, int]


COLOURS = Form(
    json=lambda: ColourRecord,
    read=lambda record: Colour(record.name),
    write=lambda colour: ColourRecord(colour.name, {}),
)


@dataclass(frozen=True)
class Drawing:
    """What a drawing has.

    More of it.
    """

    derived_fields: ClassVar = ("count",)

    title: str
    shapes: tuple[Square | Circle, ...]
    places: dict[str, tuple[int, int]]
    named: dict[str, Square]
    frame: Square | None = None
    scale: float = 1.0
    colour: Colour = field(default=Colour("red"), metadata=COLOURS.metadata)

    @property
    def count(self) -> int:
        return len(self.shapes)


INTEGERS = st.integers(-(1 << 40), 1 << 40)
SQUARES = st.builds(Square, INTEGERS)
DRAWINGS = st.builds(
    Drawing,
    st.text(),
    st.lists(SQUARES | st.builds(Circle, st.floats(0, 1e300))).map(tuple),
    st.dictionaries(st.text(), st.tuples(INTEGERS, INTEGERS)),
    st.dictionaries(st.text(), SQUARES),
    st.none() | SQUARES,
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["red", "green"]).map(Colour),
)
SCHEMA = Draft202012Validator(json_schema(Drawing))


@given(DRAWINGS)
def test_what_is_written_is_read(drawing: Drawing) -> None:
    written = json.loads(json.dumps(encode(drawing)))
    assert decode(Drawing, written) == drawing
    assert SCHEMA.is_valid(written)


def example() -> dict[str, Any]:
    drawing = Drawing("a", (Square(1), Circle(2.0)), {"b": (3, 4)}, {"c": Square(5)}, Square(6))
    return json.loads(json.dumps(encode(drawing)))  # type: ignore[no-any-return]


def test_form() -> None:
    assert example() == {
        "title": "a",
        "shapes": [{"kind": "square", "side": 1}, {"kind": "circle", "radius": 2.0}],
        "places": {"b": [3, 4]},
        "named": {"c": {"kind": "square", "side": 5}},
        "frame": {"kind": "square", "side": 6},
        "scale": 1.0,
        "colour": {"name": "red", "settings": {}},
        "count": 2,
    }


CHANGES: list[tuple[list[str | int], Any, str]] = [
    (["title"], 1, "$.title: expected str, got int"),
    (["title"], ..., "$: object missing required field title"),
    (["scale"], ..., "$: object missing required field scale"),  # no default stands in for what was lost
    (["scale"], "1", "$.scale: expected float, got str"),
    (["titel"], "a", "$: object contains unknown field titel"),
    (["shapes", 0, "side"], 1.5, "$.shapes[0].side: expected int, got float"),
    (["shapes", 0, "side"], True, "$.shapes[0].side: expected int, got bool"),
    (["shapes", 0, "kind"], "star", "$.shapes[0].kind: invalid value 'star'"),
    (["shapes", 0, "kind"], "circle", "$.shapes[0]: object contains unknown field side"),
    (["shapes", 1, "radius"], -1, "$.shapes[1]: radius -1.0 is below 0"),
    (["places", "b"], [1], "$.places.b: expected array of length 2, got 1"),
    (["named", "c", "side"], None, "$.named.c.side: expected int, got null"),
    (["frame"], [], "$.frame: expected object | null, got array"),
    (["colour", "name"], "infrared", "$.colour: 'infrared'"),
    (["colour", "settings", "x"], "y", "$.colour.settings.x: expected int, got str"),
    (["count"], 3, "$.count: 3, but the other fields make it 2"),
]


@pytest.mark.parametrize(("path", "value", "message"), CHANGES)
def test_the_message_names_the_value(path: list[str | int], value: Any, message: str) -> None:
    data = example()
    parent: Any = data
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    with pytest.raises(RecordError) as caught:
        decode(Drawing, data)
    assert str(caught.value) == message


def test_what_is_not_installed_is_said_as_it_is() -> None:
    data = example()
    data["colour"]["name"] = "ultraviolet"
    with pytest.raises(BundleError, match="install the package"):
        decode(Drawing, data)


@pytest.mark.parametrize("data", [None, [], "text", 3, {}])
def test_other_json(data: Any) -> None:
    with pytest.raises(RecordError, match=r"^\$: "):
        decode(Drawing, data)
    assert not SCHEMA.is_valid(data)


def test_schema_describes() -> None:
    schema = json_schema(Drawing)
    assert schema["$defs"]["Drawing"]["description"] == "What a drawing has."
