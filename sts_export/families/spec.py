"""What a family makes of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sts_export.families.dimensions import LARGE, between, small
from sts_export.families.towers import VISION_FORM, open_tower
from sts_export.families.towers.protocol import Pictures, Tower
from sts_export.graphs.configs import DecoderConfig, ProjectorConfig, VisionConfig
from sts_export.graphs.contracts import GraphContract

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.pruning.config import PruningConfig


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a whole vision-language model.

    Args:
        family: name in the registry of families.
        projector: None where the tower ends in the LLM's width.
        image_token: text of the token ``image_token_id`` that stands for an image in a prompt.
        max_positions: the decoder's position limit, or its attention window where that is smaller.
        max_image_tokens: N of the largest image.
        max_image_newlines: learned newline rows of the tallest image; 0 for families without.
        tile_resolutions: (height, width) in pixels that a picture may be tiled at; none for families without tiles.
        default_chat_template: serves checkpoints without one; empty where nothing tells what the model was trained on.

    Raises:
        ValueError: a dimension that no model has; graphs for it would be nonsense or take forever to build.
    """

    family: str
    vision: VisionConfig = field(metadata=VISION_FORM.metadata)
    projector: ProjectorConfig | None
    decoder: DecoderConfig
    image_token_id: int
    image_token: str
    max_positions: int
    max_image_tokens: int
    default_chat_template: str
    max_image_newlines: int = 0
    tile_resolutions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        self.tower.check()
        decoder = self.decoder
        for name, value, limit in (
            ("layers", decoder.num_layers, 1024),
            ("head_dim", decoder.head_dim, 4096),
            ("num_key_value_heads", decoder.num_kv_heads, decoder.num_heads),
            ("max_position_embeddings", self.max_positions, LARGE),
            ("visual tokens", self.max_image_tokens, 1 << 20),
            *(
                (name, getattr(decoder, name), LARGE)
                for name in ("hidden_size", "intermediate_size", "num_heads", "vocab_size")
            ),
        ):
            between(name, value, limit)
        if decoder.head_dim % 2 or decoder.num_heads % decoder.num_kv_heads:
            raise ValueError("heads do not divide evenly")
        sections = decoder.mrope_section
        if sections and (len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != decoder.head_dim):
            raise ValueError(f"mrope_section {list(decoder.mrope_section)} does not make half of head_dim {decoder.head_dim}")
        for name, number in (("rope_theta", decoder.rope_theta), ("rope factor", decoder.rope_factor)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} {number} is not a positive number")
        small("rms_norm_eps", decoder.rms_norm_eps)
        between("image_token_id", self.image_token_id, LARGE)

    @property
    def tower(self) -> Tower:
        """The vision tower as an object."""
        return open_tower(self.vision, Pictures(self.max_image_tokens, self.max_image_newlines, self.tile_resolutions))

    def unpruned_positions(self, pruning: PruningConfig) -> bool:
        """Whether rows have their positions in the unpruned prompt: with M-RoPE, or if asked for."""
        return bool(self.decoder.mrope_section) or pruning.positions == "original"


@dataclass(frozen=True)
class Graphs:
    """The ONNX models and their contracts, in the order in which they run."""

    models: dict[str, ir.Model]
    contracts: dict[str, GraphContract]
