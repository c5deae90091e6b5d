"""The decoder as a sequence of parts, each a graph of its own with KV caches of its own capacity.

Between two parts visual tokens are dropped: layers 0..L-1 -> stage 2 -> layers L..T-1.  A further cut is one part more.
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
        first, end: layers ``first`` to ``end - 1``.
        is_last: the norm and the head follow its layers; after every other part visual tokens are dropped.
    """

    name: str
    first: int
    end: int
    is_last: bool

    @property
    def layers(self) -> range:
        return range(self.first, self.end)

    @property
    def is_first(self) -> bool:
        """The embedding comes before its layers."""
        return self.first == 0


def decoder_parts(num_layers: int, cuts: Sequence[int]) -> tuple[DecoderPart, ...]:
    """The parts of a decoder of ``num_layers`` layers.

    Args:
        cuts: how many layers run before each dropping of tokens, ascending: ``0 < cut < num_layers``; at least one.
    """
    bounds = (0, *cuts, num_layers)
    names = (FIRST, *(f"llm_middle_{number}" for number in range(1, len(cuts))), LAST)
    return tuple(
        DecoderPart(name, first, end, end == num_layers) for name, first, end in zip(names, bounds, bounds[1:], strict=False)
    )
