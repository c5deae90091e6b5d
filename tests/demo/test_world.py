"""The demo world: the same picture for the same seed, and answers that the scene proves."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.demo import world
from sts_export.demo.drawing import BACKGROUND_ID, GLYPH_ID, GLYPHS, draw, render
from sts_export.demo.held_out import held_out
from sts_export.demo.questions import KINDS, PHRASINGS, Question, ask, corner

SCENES_DIGEST = "e8318d13cd4c159829ebd6384990d051420bc239b62b34c14f7553db58b385db"
SEEDS = st.integers(0, world.HELD_OUT_SEEDS.stop - 1)


def asked(seed: int, per_kind: int = 2) -> tuple[world.Scene, list[Question]]:
    scene = world.sample_scene(seed)
    return scene, ask(scene, np.random.default_rng([seed, 1]), per_kind)


def subject(question: Question) -> str:
    """The words that fill the phrasing: "red object" of "Is there a red object?"."""
    for form in PHRASINGS[question.kind]:
        before, _, after = form.partition("{0}")
        if question.text.startswith(before) and question.text.endswith(after):
            return question.text[len(before) : len(question.text) - len(after)]
    raise AssertionError(question)


def named(scene: world.Scene, name: str) -> list[world.Object]:
    """The objects that a subject names, by its words alone."""
    word = name.removesuffix(" object")
    return [o for o in scene.objects if word in (o.color, o.shape)]


def test_a_seed_is_a_picture() -> None:
    first, second = render(world.sample_scene(5)), render(world.sample_scene(5))
    assert first.size == (world.IMAGE_SIZE, world.IMAGE_SIZE)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != render(world.sample_scene(6)).tobytes()


def test_scenes_have_not_changed() -> None:
    """The shipped model was trained on exactly these scenes; whoever changes them must train it again."""
    text = "\n".join(repr(world.sample_scene(seed)) for seed in range(50))
    assert hashlib.sha256(text.encode()).hexdigest() == SCENES_DIGEST


def test_questions_are_repeatable() -> None:
    assert asked(9) == asked(9)


def test_splits_are_disjoint() -> None:
    assert world.TRAIN_SEEDS.stop <= world.HELD_OUT_SEEDS.start
    picture, questions = held_out(3)
    scene = world.sample_scene(world.HELD_OUT_SEEDS[3])
    assert picture.tobytes() == render(scene).tobytes()
    assert questions == ask(scene, np.random.default_rng([scene.seed, 1]))


def test_every_kind_and_every_answer_appears() -> None:
    answers = Counter((q.kind, q.answer) for seed in range(300) for q in asked(seed)[1] if q.kind != "reading")
    found = {kind: {a for k, a in answers if k == kind} for kind in KINDS}
    assert found["color"] == set(world.COLORS)
    assert found["shape"] == set(world.SHAPES)
    assert found["position"] == {"top left", "top right", "bottom left", "bottom right"}
    assert found["count"] == set("23")
    assert found["presence"] == {"yes", "no"}
    assert abs(answers["presence", "yes"] / (answers["presence", "yes"] + answers["presence", "no"]) - 0.5) < 0.08
    letters = {c for seed in range(100) for c in world.sample_scene(seed).label.text}
    assert letters == set(world.ALPHABET) == set(GLYPHS)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_answers_follow_from_the_scene(seed: int) -> None:
    scene, questions = asked(seed, per_kind=4)
    for question in questions:
        if question.kind in ("reading", "count"):
            text = scene.label.text
            assert question.answer == (text if question.kind == "reading" else str(len(text)))
            continue
        objects = named(scene, subject(question))
        if question.kind == "presence":
            assert question.answer == ("yes" if objects else "no")
        else:
            assert len(objects) == 1, "the question must name one object"
            only = objects[0]
            truth = {"color": only.color, "shape": only.shape, "position": corner(only)}
            assert question.answer == truth[question.kind]


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_objects_are_inside_and_apart(seed: int) -> None:
    scene = world.sample_scene(seed)
    assert len(scene.objects) >= 1
    boxes = []
    for o in scene.objects:
        assert world.MIN_DIAMETER <= o.diameter <= world.MAX_DIAMETER
        left, top = o.x - o.diameter // 2, o.y - o.diameter // 2
        boxes.append((left, top, left + o.diameter, top + o.diameter))
    width = len(scene.label.text) * (world.GLYPH_WIDTH + world.GLYPH_GAP) - world.GLYPH_GAP
    x, y = scene.label.x, scene.label.y
    boxes.append((x, y, x + width, y + world.GLYPH_HEIGHT))
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert min(left, top) >= world.MARGIN
        assert max(right, bottom) <= world.IMAGE_SIZE - world.MARGIN
        for left2, top2, right2, bottom2 in boxes[:i]:
            assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_pixels_belong_to_their_object(seed: int) -> None:
    scene = world.sample_scene(seed)
    drawing = draw(scene)
    expected = set(range(len(scene.objects))) | {GLYPH_ID + i for i in range(len(scene.label.text))}
    assert set(np.unique(drawing.owner).tolist()) == expected | {BACKGROUND_ID}
    for index, item in enumerate(scene.objects):
        rows, columns = np.nonzero(drawing.owner == index)
        # A triangle's pixels end at four fifths of its radius, a star's a little above its circle's bottom.
        assert abs(rows.mean() - item.y) <= 0.3 * item.diameter
        assert abs(columns.mean() - item.x) <= 2
        inner = drawing.pixels[item.y, item.x].astype(int)
        assert np.abs(inner - np.array(item.rgb)).max() <= 1
    assert (drawing.owner == BACKGROUND_ID).mean() > 0.6, "most of a picture must be background"


@pytest.mark.parametrize("limit", [3, 4])
def test_fewer_objects_on_request(limit: int) -> None:
    assert max(len(world.sample_scene(seed, max_objects=limit).objects) for seed in range(50)) <= limit
