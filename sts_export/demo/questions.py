"""Questions about a scene. Every question has exactly one right answer, which its scene proves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sts_export.demo.world import COLORS, IMAGE_SIZE, SHAPES, Object, Scene

Ask = Callable[[Scene, np.random.Generator, int], "list[Question]"]

# Objects nearer than this to a middle line are not asked for their position.
POSITION_MARGIN = 20

PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": ("What color is the {0}?", "Which color does the {0} have?", "Tell me the color of the {0}."),
    "shape": ("What shape is the {0} object?", "Which shape does the {0} object have?", "What is the {0} object?"),
    "position": ("Where is the {0}?", "In which corner is the {0}?", "Where can I see the {0}?"),
    "count": ("How many {0} are there?", "Count the {0}.", "What is the number of {0}?"),
    "presence": ("Is there a {0}?", "Does the picture show a {0}?", "Can you see a {0}?"),
    "reading": ("What does the text say?", "Read the text.", "Which letters are written here?"),
}
KINDS = tuple(PHRASINGS)


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS; text: what the user asks; answer: the one right answer."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, rng: np.random.Generator, per_kind: int = 1) -> list[Question]:
    """At most `per_kind` questions of every kind; a kind the scene has no clear question for is left out."""
    return [question for kind in KINDS for question in _ASKERS[kind](scene, rng, per_kind)]


def _phrase(kind: str, rng: np.random.Generator, subject: str, answer: str) -> Question:
    form = PHRASINGS[kind][int(rng.integers(len(PHRASINGS[kind])))]
    return Question(kind, form.format(subject), answer)


def _some(rng: np.random.Generator, items: list[str], limit: int) -> list[str]:
    return [items[i] for i in rng.permutation(len(items))[:limit]]


def _color(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    of_shape = Counter(o.shape for o in scene.objects)
    color = {o.shape: o.color for o in scene.objects}
    unique = [shape for shape, n in of_shape.items() if n == 1]
    return [_phrase("color", rng, shape, color[shape]) for shape in _some(rng, unique, limit)]


def _shape(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    of_color = Counter(o.color for o in scene.objects)
    shape = {o.color: o.shape for o in scene.objects}
    unique = [color for color, n in of_color.items() if n == 1]
    return [_phrase("shape", rng, color, shape[color]) for color in _some(rng, unique, limit)]


def corner(item: Object) -> str | None:
    """The quarter of the picture an object lies in; None when it is too near a middle line to say."""
    middle = IMAGE_SIZE / 2
    if min(abs(item.x - middle), abs(item.y - middle)) < POSITION_MARGIN:
        return None
    return f"{'top' if item.y < middle else 'bottom'} {'left' if item.x < middle else 'right'}"


def _named(scene: Scene) -> dict[str, list[Object]]:
    """ "star" and "red object", for all shapes and colours -> the objects so named."""
    of_shape = {shape: [o for o in scene.objects if o.shape == shape] for shape in SHAPES}
    return of_shape | {f"{color} object": [o for o in scene.objects if o.color == color] for color in COLORS}


def _position(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    where = {name: corner(found[0]) for name, found in _named(scene).items() if len(found) == 1}
    chosen = _some(rng, [name for name, place in where.items() if place], limit)
    return [_phrase("position", rng, name, str(where[name])) for name in chosen]


def _count(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    return [_phrase("count", rng, "letters", str(len(scene.label.text)))][:limit]


def _presence(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    named = _named(scene)
    there, absent = ([name for name, found in named.items() if bool(found) == wanted] for wanted in (True, False))
    asked: list[Question] = []
    for _ in range(limit):
        yes = bool(rng.random() < 0.5) or not absent
        asked.append(_phrase("presence", rng, _some(rng, there if yes else absent, 1)[0], "yes" if yes else "no"))
    return asked


def _reading(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    return [_phrase("reading", rng, "", scene.label.text)][:limit]


_ASKERS: dict[str, Ask] = {
    "color": _color,
    "shape": _shape,
    "position": _position,
    "count": _count,
    "presence": _presence,
    "reading": _reading,
}
