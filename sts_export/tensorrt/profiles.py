"""The sizes that engines are built for: optimization profiles, from the manifest."""

from __future__ import annotations

from sts_export.bundle.manifest import Manifest
from sts_export.families.towers.protocol import SizeRanges
from sts_export.graphs.contracts import TensorSpec
from sts_export.graphs.sizes import rows_of_part, visual_of_part

Profile = SizeRanges  # of a graph's symbolic dimensions
PREFILL, DECODE = 0, 1  # indices of the profiles of the decoder's parts


def profiles(manifest: Manifest, name: str, max_batch: int) -> list[Profile]:
    """Of graph ``name``: one profile over images for the first two graphs, prefill and decode for the decoder's parts.

    Between them they cover all that a bundle promises.  ``kept`` is in none: it follows from the selector's inputs.

    Args:
        max_batch: requests that are decoded together; images are encoded and prompts are prefilled one at a time.
    """
    spec, keep1 = manifest.model, manifest.pruning.keep_stage1
    if name == "vision_encoder":
        return [spec.tower.profile()]
    if name == "selector":
        tokens, crops = spec.max_image_tokens, spec.tower.max_crops
        best = -(-keep1 // crops)
        # Unpadding may leave all of K to one crop.
        prompt = manifest.capacities.prompt_tokens
        text = (1, prompt, max(prompt, manifest.capacities.rows[0]))  # a long prompt may take rows meant for the answer
        return [{"crops": (1, crops, crops), "tokens": (1, tokens, tokens), "steps": (1, best, keep1), "text": text}]
    return _decoder(manifest, max_batch)


def _decoder(manifest: Manifest, max_batch: int) -> list[Profile]:
    """Prefill and decode, with the sizes of all parts.

    A prompt is always one request: it writes into that request's slot of caches that are shared.  Engines for prompts of
    ``max_batch`` requests would need as many times the memory for activations, and nobody would run them so.
    """
    pruning, room = manifest.pruning, manifest.capacities
    prefill = {"batch": (1, 1, 1)}
    for part, keep, most in zip(pruning.parts, pruning.keeps(pruning.num_visual_tokens), room.rows, strict=True):
        # A long prompt may take rows that were meant for the answer, and more pictures those of text.
        prefill[rows_of_part(part.index)] = (1, min(most, keep + room.prompt_tokens // 2), most)
        prefill[visual_of_part(part.index)] = (1, min(most, keep), most)
    return [prefill, {**dict.fromkeys(prefill, (1, 1, 1)), "batch": (1, 1, max_batch)}]


Shape = tuple[int, ...]


def shapes(spec: TensorSpec, profile: Profile) -> tuple[Shape, Shape, Shape]:
    """Least, best and largest shape of a graph input under a profile."""
    least, best, largest = (
        tuple(size if isinstance(size, int) else profile[size][which] for size in spec.shape) for which in range(3)
    )
    return least, best, largest


def is_dynamic(spec: TensorSpec) -> bool:
    return any(isinstance(size, str) for size in spec.shape)
