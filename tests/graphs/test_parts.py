"""The decoder's parts: any list of cuts, and what follows from it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sts_export.graphs.configs import DecoderConfig
from sts_export.graphs.contracts import PASSED_ON
from sts_export.graphs.decoder.contract import decoder_part_contract
from sts_export.graphs.decoder.parts import decoder_parts
from sts_export.graphs.sizes import derived_sizes, rows_of_part, visual_of_part

fuzz = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def cut_decoders(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """Layers and cuts."""
    layers = draw(st.integers(2, 40))
    return layers, tuple(sorted(draw(st.sets(st.integers(1, layers - 1), min_size=1, max_size=6))))


def decoder(layers: int, *, mrope: bool = False) -> DecoderConfig:
    return DecoderConfig(16, 24, layers, 4, 2, 4, 30, 1e-5, 10000.0, mrope_section=(1, 1, 0) if mrope else ())


@fuzz
@given(cut_decoders())
def test_parts_are_all_layers_in_order(found: tuple[int, tuple[int, ...]]) -> None:
    layers, cuts = found
    parts = decoder_parts(layers, cuts)
    assert [layer for part in parts for layer in part.layers] == list(range(layers))
    assert [part.first for part in parts[1:]] == list(cuts) and all(part.layers for part in parts)
    assert [part.is_first for part in parts] == [True] + [False] * len(cuts)
    assert [part.is_last for part in parts] == [False] * len(cuts) + [True]
    assert [part.next_drops for part in parts] == [True] * (len(cuts) - 1) + [False, False]
    assert (parts[0].name, parts[-1].name) == ("llm_lower", "llm_upper") and len({part.name for part in parts}) == len(parts)


@fuzz
@given(cut_decoders(), st.booleans())
def test_what_a_part_gives_is_what_the_next_one_takes(found: tuple[int, tuple[int, ...]], mrope: bool) -> None:
    """In name, shape and dtype; only slots and write index are the host's alone."""
    layers, cuts = found
    contracts = [
        decoder_part_contract(decoder(layers, mrope=mrope), part, 8, "float16") for part in decoder_parts(layers, cuts)
    ]
    for before, after in pairwise(contracts):
        given_by = {spec.name: spec for spec in before.outputs}
        caches = {name for name, _ in after.caches}
        for spec in after.inputs:
            if spec.name not in caches | {"stage2_slots", "write_index"}:
                source = given_by[PASSED_ON.get(spec.name, spec.name)]
                assert (source.shape, source.dtype) == (spec.shape, spec.dtype), spec
    for contract in contracts:
        names = [spec.name for spec in (*contract.inputs, *contract.outputs)]
        assert len(set(names)) == len(names)


@fuzz
@given(cut_decoders(), st.integers(1, 50), st.lists(st.integers(0, 30), min_size=7, max_size=7))
def test_sizes_follow_from_those_of_the_inputs(found: tuple[int, tuple[int, ...]], text: int, drops: list[int]) -> None:
    """Rows of text pass every part; of the visual ones some are dropped after each."""
    layers, cuts = found
    visual = [sum(drops) + 1]
    for dropped in drops[: len(cuts)]:
        visual.append(visual[-1] - dropped)
    for part in decoder_parts(layers, cuts):
        contract = decoder_part_contract(decoder(layers), part, 8, "float16")
        known = {
            "batch": 1,
            rows_of_part(part.index): text + visual[part.index],
            visual_of_part(part.index): visual[part.index],
        }
        if part.is_last:
            assert derived_sizes(contract, known) == {}
        else:
            after = part.index + 1
            known[visual_of_part(after)] = visual[after]
            assert derived_sizes(contract, known) == {rows_of_part(after): text + visual[after]}


def test_a_decoder_cut_once_has_the_names_of_the_method() -> None:
    assert [(rows_of_part(index), visual_of_part(index)) for index in (0, 1)] == [
        ("sequence", "visual"),
        ("survivors", "visual_keep"),
    ]
