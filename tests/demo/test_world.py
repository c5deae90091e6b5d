"""The demo world: the same picture for the same seed, and answers that the scene proves."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.demo import world
from sts_export.demo.drawing import BACKGROUND_ID, GLYPH_ID, GLYPHS, draw, render
from sts_export.demo.held_out import held_out, held_out_questions
from sts_export.demo.questions import BOTH, KINDS, PHRASINGS, SIZE_RATIO, Question, ask, ask_both, corner

SCENES_DIGEST = "aecd768655ccdb39723b068ddb362b0ea57c23da35be46f19fdd5b1fc418316f"
SEEDS = st.integers(0, world.HELD_OUT_SEEDS.stop - 1)


def asked(seed: int, per_kind: int = 2) -> tuple[world.Scene, list[Question]]:
    scene = world.sample_scene(seed)
    return scene, ask(scene, np.random.default_rng([seed, 1]), per_kind)


def subjects(question: Question) -> list[str]:
    """The words that fill the phrasing: "thing in red" of "Is there a thing in red?"."""
    for form in (*PHRASINGS[question.kind], *BOTH):
        pattern = re.escape(form).replace(r"\{0\}", "(.+?)").replace(r"\{1\}", "(.+?)")
        if match := re.fullmatch(pattern, question.text):
            return list(match.groups())
    raise AssertionError(question)


def named(scene: world.Scene, name: str) -> list[world.Object]:
    """The objects that a subject names, by its words alone."""
    one = re.sub(r"^things? in ", "", name)
    words = {one, one.removesuffix("s"), one.removesuffix("es")}
    return [o for o in scene.objects if words & {o.color, o.shape}]


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
    pictures, questions = held_out(3)
    scenes = world.sample_scene(world.HELD_OUT_SEEDS[3]), world.sample_scene(world.HELD_OUT_SEEDS[4])
    assert [picture.tobytes() for picture in pictures] == [render(scene).tobytes() for scene in scenes]
    rng = np.random.default_rng([scenes[0].seed, 1])
    assert questions == [*ask(scenes[0], rng), *ask_both(scenes, rng)] == held_out_questions(3)


def test_the_last_held_out_scene_has_a_next_one() -> None:
    last = len(world.HELD_OUT_SEEDS) - 1
    assert held_out(last)[0][1].tobytes() == held_out(0)[0][0].tobytes()


def test_every_kind_and_every_answer_appears() -> None:
    every = [q for index in range(300) for q in held_out_questions(index)]
    answers = Counter((q.kind, q.answer) for q in every)
    found = {kind: {a for k, a in answers if k == kind} for kind in KINDS}
    assert found["color"] == set(world.COLORS)
    assert found["shape"] == set(world.SHAPES)
    assert found["position"] == {"top left", "top right", "bottom left", "bottom right"}
    assert found["count"] == set("1234")
    assert found["presence"] == {"yes", "no"}
    assert found["comparison"] == {*world.COLORS, *world.SHAPES}
    assert found["two pictures"] == {"first", "second", "yes", "no"}
    assert abs(answers["presence", "yes"] / (answers["presence", "yes"] + answers["presence", "no"]) - 0.5) < 0.08
    assert {q.kind for q in every if q.pictures == 2} == {"two pictures"}
    assert len(found["reading"]) > 80 and found["reading"] <= set(world.WORDS)
    assert {letter for word in world.WORDS for letter in word} == set(GLYPHS)
    assert len(set(world.WORDS)) == len(world.WORDS)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_answers_follow_from_the_scene(seed: int) -> None:
    scene, questions = asked(seed, per_kind=4)
    for question in questions:
        if question.kind == "reading":
            assert question.answer == scene.label.text
            continue
        objects = [named(scene, name) for name in subjects(question)]
        if question.kind == "presence":
            assert question.answer == ("yes" if objects[0] else "no")
        elif question.kind == "count":
            assert question.answer == str(len(objects[0]))
        elif question.kind == "comparison":
            (one,), (other,) = objects
            larger, smaller = sorted((one, other), key=lambda o: -o.diameter)
            assert larger.diameter >= SIZE_RATIO * smaller.diameter
            assert question.answer in (larger.color, larger.shape)
            assert question.answer not in (smaller.color, smaller.shape)
        else:
            (only,) = objects[0]  # the question must name one object
            truth = {"color": only.color, "shape": only.shape, "position": corner(only)}
            assert question.answer == truth[question.kind]


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS)
def test_answers_follow_from_both_scenes(one: int, other: int) -> None:
    scenes = world.sample_scene(one), world.sample_scene(other)
    for question in ask_both(scenes, np.random.default_rng([one, other]), 6):
        assert question.pictures == 2
        there = [bool(named(scene, subjects(question)[0])) for scene in scenes]
        truth = {"first": [True, False], "second": [False, True], "yes": [True, True]}
        assert there == truth.get(question.answer, there)
        assert question.answer != "no" or sum(there) == 1


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
