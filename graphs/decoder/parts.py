"""The decoder as a sequence of parts, each a graph of its own with KV caches of its own capacity.

Between two parts visual tokens are dropped: layers 0..L-1 -> stage 2 -> layers L..T-1.  A further cut is one part more.
Symbolic sizes (``graphs.contracts``) are numbered by part, so that one name has one size in all graphs of a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST, LAST = "llm_lower", "llm_upper"


@dataclass(frozen=True)
class DecoderPart:
    """Some successive layers of the decoder.

    Args:
        name: of the graph.
        index, count: it is the ``index``-th of ``count`` parts, from 0.
        first, end: layers ``first`` to ``end - 1``.
    """

    name: str
    index: int
    count: int
    first: int
    end: int

    @property
    def layers(self) -> range:
        return range(self.first, self.end)

    @property
    def is_first(self) -> bool:
        """The embedding comes before its layers."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """The norm and the head follow its layers; after every other part visual tokens are dropped."""
        return self.index == self.count - 1

    @property
    def next_drops(self) -> bool:
        """The part after it drops visual tokens, too, and has to know which of its rows are visual."""
        return self.index < self.count - 2

    @property
    def label(self) -> str:
        """Short name for people: ``lower``, ``middle_1``, ``upper``."""
        return self.name.removeprefix("llm_")


def decoder_parts(num_layers: int, cuts: Sequence[int]) -> tuple[DecoderPart, ...]:
    """The parts of a decoder of ``num_layers`` layers.

    Args:
        cuts: how many layers run before each dropping of tokens, ascending: ``0 < cut < num_layers``; at least one.
    """
    bounds = (0, *cuts, num_layers)
    names = (FIRST, *(f"llm_middle_{number}" for number in range(1, len(cuts))), LAST)
    return tuple(
        DecoderPart(name, index, len(names), first, end)
        for index, (name, first, end) in enumerate(zip(names, bounds, bounds[1:], strict=False))
    )
