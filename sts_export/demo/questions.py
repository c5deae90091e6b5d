"""Questions about one or two scenes. Every question has exactly one right answer, which its scenes prove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sts_export.demo.world import COLORS, IMAGE_SIZE, SHAPES, Object, Scene

# Objects nearer than this to a middle line are not asked for their position.
POSITION_MARGIN = 20
# Of two objects that are compared, one is at least so many times as large.
SIZE_RATIO = 1.3

PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": ("What color is the {0}?", "Which color does the {0} have?", "Tell me the color of the {0}."),
    "shape": ("What shape is the {0}?", "Which shape does the {0} have?", "Tell me the shape of the {0}."),
    "position": ("Where is the {0}?", "In which corner is the {0}?", "Where can I see the {0}?"),
    "count": ("How many {0} are there?", "Count the {0}.", "What is the number of {0}?"),
    "presence": ("Is there a {0}?", "Does the picture show a {0}?", "Can you see a {0}?"),
    "reading": ("What does the text say?", "Read the text.", "Which word is written here?"),
    "comparison": ("Which is larger, the {0} or the {1}?", "What is larger, the {0} or the {1}?"),
    "two pictures": (
        "Which picture shows a {0}, the first or the second?",
        "Is there a {0} in the first or in the second picture?",
    ),
}
KINDS = tuple(PHRASINGS)
BOTH = ("Do both pictures show a {0}?", "Is there a {0} in both pictures?")


@dataclass(frozen=True)
class Question:
    """kind: one of KINDS; text: what the user asks; answer: the one right answer; pictures: how many it is about."""

    kind: str
    text: str
    answer: str
    pictures: int = 1


def ask(scene: Scene, rng: np.random.Generator, per_kind: int = 1) -> list[Question]:
    """At most `per_kind` questions of every kind about one picture; a kind the scene has no clear one for is left out."""
    return [question for asker in _ASKERS.values() for question in asker(scene, rng, per_kind)]


def ask_both(scenes: tuple[Scene, Scene], rng: np.random.Generator, limit: int = 1) -> list[Question]:
    """At most `limit` questions about two pictures."""
    there = [_named(scene) for scene in scenes]
    in_one = [name for name in there[0] if bool(there[0][name]) != bool(there[1][name])]
    in_both = [name for name in there[0] if there[0][name] and there[1][name]]
    asked: list[Question] = []
    for _ in range(limit):
        which = bool(rng.random() < 0.5)
        yes = bool(rng.random() < 0.5)
        names = in_both if not which and yes else in_one
        if not names:
            continue
        name = _some(rng, names, 1)[0]
        if which:
            answer = "first" if there[0][name] else "second"
            asked.append(_phrase("two pictures", PHRASINGS["two pictures"], rng, (name,), answer, 2))
        else:
            asked.append(_phrase("two pictures", BOTH, rng, (name,), "yes" if yes else "no", 2))
    return asked


def corner(item: Object) -> str | None:
    """The quarter of the picture an object lies in; None when it is too near a middle line to say."""
    middle = IMAGE_SIZE / 2
    if min(abs(item.x - middle), abs(item.y - middle)) < POSITION_MARGIN:
        return None
    return f"{'top' if item.y < middle else 'bottom'} {'left' if item.x < middle else 'right'}"


def _phrase(
    kind: str, forms: Sequence[str], rng: np.random.Generator, subjects: Sequence[str], answer: str, pictures: int = 1
) -> Question:
    return Question(kind, forms[int(rng.integers(len(forms)))].format(*subjects), answer, pictures)


def _some(rng: np.random.Generator, items: Sequence[str], limit: int) -> list[str]:
    return [items[i] for i in rng.permutation(len(items))[:limit]]


def _by_shape(scene: Scene) -> dict[str, list[Object]]:
    return {shape: [o for o in scene.objects if o.shape == shape] for shape in SHAPES}


def _by_color(scene: Scene) -> dict[str, list[Object]]:
    return {f"thing in {color}": [o for o in scene.objects if o.color == color] for color in COLORS}


def _named(scene: Scene) -> dict[str, list[Object]]:
    """ "star" and "thing in red", for all shapes and colours -> the objects so named."""
    return _by_shape(scene) | _by_color(scene)


def _single(named: dict[str, list[Object]]) -> dict[str, Object]:
    return {name: found[0] for name, found in named.items() if len(found) == 1}


def _color(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    single = _single(_by_shape(scene))
    chosen = _some(rng, list(single), limit)
    return [_phrase("color", PHRASINGS["color"], rng, (name,), single[name].color) for name in chosen]


def _shape(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    single = _single(_by_color(scene))
    chosen = _some(rng, list(single), limit)
    return [_phrase("shape", PHRASINGS["shape"], rng, (name,), single[name].shape) for name in chosen]


def _position(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    where = {name: corner(item) for name, item in _single(_named(scene)).items()}
    chosen = _some(rng, [name for name, place in where.items() if place], limit)
    return [_phrase("position", PHRASINGS["position"], rng, (name,), str(where[name])) for name in chosen]


def _count(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    """Of what is there; what is there more than once comes first every other time."""
    there = {name: len(found) for name, found in _named(scene).items() if found}
    several = [name for name, count in there.items() if count > 1]
    chosen = _some(rng, several, limit) if rng.random() < 0.5 else []
    chosen += [name for name in _some(rng, list(there), limit) if name not in chosen]
    return [_phrase("count", PHRASINGS["count"], rng, (_plural(n),), str(there[n])) for n in chosen[:limit]]


def _plural(name: str) -> str:
    if name.startswith("thing "):
        return name.replace("thing", "things", 1)
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _presence(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    named = _named(scene)
    there, absent = ([name for name, found in named.items() if bool(found) == wanted] for wanted in (True, False))
    asked: list[Question] = []
    for _ in range(limit):
        yes = bool(rng.random() < 0.5) or not absent
        name = _some(rng, there if yes else absent, 1)[0]
        asked.append(_phrase("presence", PHRASINGS["presence"], rng, (name,), "yes" if yes else "no"))
    return asked


def _reading(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    return [_phrase("reading", PHRASINGS["reading"], rng, (), scene.label.text)][:limit]


def _comparison(scene: Scene, rng: np.random.Generator, limit: int) -> list[Question]:
    asked: list[Question] = []
    for single in (_single(_by_shape(scene)), _single(_by_color(scene))):
        pairs = [(a, b) for a in single for b in single if single[a].diameter >= SIZE_RATIO * single[b].diameter]
        for number in rng.permutation(len(pairs))[:limit]:
            larger, smaller = pairs[number]
            names = (larger, smaller) if rng.random() < 0.5 else (smaller, larger)
            answer = larger.removeprefix("thing in ")
            asked.append(_phrase("comparison", PHRASINGS["comparison"], rng, names, answer))
    return [asked[i] for i in rng.permutation(len(asked))[:limit]]


_ASKERS: dict[str, Callable[[Scene, np.random.Generator, int], list[Question]]] = {
    "color": _color,
    "shape": _shape,
    "position": _position,
    "count": _count,
    "presence": _presence,
    "reading": _reading,
    "comparison": _comparison,
}
