"""The sizes that engines are built for: optimization profiles, from the manifest."""

from __future__ import annotations

from sts_export.bundle.manifest import Manifest
from sts_export.families.towers.protocol import SizeRanges
from sts_export.graphs.contracts import TensorSpec

Profile = SizeRanges  # of a graph's symbolic dimensions
PREFILL, DECODE = 0, 1  # indices of the profiles of llm_lower and llm_upper


def profiles(manifest: Manifest, name: str, max_batch: int) -> list[Profile]:
    """Of graph ``name``: one profile over images for the first two graphs, prefill and decode for the decoder's halves.

    Between them they cover all that a bundle promises.  ``kept`` is in none: it follows from the selector's inputs.

    Args:
        max_batch: requests that run together; images are always encoded one at a time.
    """
    spec, pruning, room = manifest.model, manifest.pruning, manifest.capacities
    if name == "vision_encoder":
        return [spec.tower.profile()]
    keep1, keep2 = pruning.keep_stage1, pruning.keep_stage2
    if name == "selector":
        tokens, crops = spec.max_image_tokens, spec.tower.max_crops
        best = -(-keep1 // crops)
        # Unpadding may leave all of K to one crop.
        return [{"crops": (1, crops, crops), "tokens": (1, tokens, tokens), "steps": (1, best, keep1)}]
    text, lower, upper = room.prompt_tokens, room.lower, room.upper
    # A long prompt may take rows that were meant for the answer, and more pictures those of text.
    prefill = {
        "batch": (1, 1, max_batch),
        "sequence": (1, min(lower, keep1 + text // 2), lower),
        "visual": (1, min(lower, keep1), lower),
        "visual_keep": (1, min(upper, keep2), upper),
        "survivors": (1, min(upper, keep2 + text // 2), upper),
    }
    one = (1, 1, 1)
    decode = {"batch": (1, 1, max_batch), **dict.fromkeys(("sequence", "visual", "visual_keep", "survivors"), one)}
    return [prefill, decode]


Shape = tuple[int, ...]


def shapes(spec: TensorSpec, profile: Profile) -> tuple[Shape, Shape, Shape]:
    """Least, best and largest shape of a graph input under a profile."""
    least, best, largest = (
        tuple(size if isinstance(size, int) else profile[size][which] for size in spec.shape) for which in range(3)
    )
    return least, best, largest


def is_dynamic(spec: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)
