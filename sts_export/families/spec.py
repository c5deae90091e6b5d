"""What a family makes of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sts_export.graphs.configs import ClipVisionConfig, DecoderConfig, ProjectorConfig, QwenVisionConfig, VisionConfig
from sts_export.graphs.contracts import GraphContract

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.pruning.config import PruningConfig


_LARGE = 1 << 24


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
    vision: VisionConfig
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
        _check_vision(self.vision)
        decoder = self.decoder
        for name, value, limit in (
            ("layers", decoder.num_layers, 1024),
            ("head_dim", decoder.head_dim, 4096),
            ("num_key_value_heads", decoder.num_kv_heads, decoder.num_heads),
            ("max_position_embeddings", self.max_positions, _LARGE),
            ("visual tokens", self.max_image_tokens, 1 << 20),
            *(
                (name, getattr(decoder, name), _LARGE)
                for name in ("hidden_size", "intermediate_size", "num_heads", "vocab_size")
            ),
        ):
            _between(name, value, limit)
        if decoder.head_dim % 2 or decoder.num_heads % decoder.num_kv_heads:
            raise ValueError("heads do not divide evenly")
        sections = decoder.mrope_section
        if sections and (len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != decoder.head_dim):
            raise ValueError(f"mrope_section {list(decoder.mrope_section)} does not make half of head_dim {decoder.head_dim}")
        for name, number in (("rope_theta", decoder.rope_theta), ("rope factor", decoder.rope_factor)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} {number} is not a positive number")
        _small("rms_norm_eps", decoder.rms_norm_eps)
        _between("image_token_id", self.image_token_id, _LARGE)
        self._check_tiles()

    def _check_tiles(self) -> None:
        """Tiles are whole crops, and what follows from them is what it says."""
        if not self.tile_resolutions:
            if self.max_image_newlines:
                raise ValueError("newlines without tiles")
            return
        if not isinstance(self.vision, ClipVisionConfig):
            raise ValueError("tiles of a tower that takes any resolution")
        size = self.vision.image_size
        for side in (side for resolution in self.tile_resolutions for side in resolution):
            if not size <= side <= 1 << 14:
                raise ValueError(f"a side of image_grid_pinpoints, {side}, is not between {size} and {1 << 14}")
        tiles = [(height // size, width // size) for height, width in self.tile_resolutions]
        tokens = self.vision.num_patches * (1 + max(down * across for down, across in tiles))
        newlines = self.vision.grid_side * max(down for down, _ in tiles)
        if (self.max_image_tokens, self.max_image_newlines) != (tokens, newlines):
            raise ValueError("image_grid_pinpoints make another number of tokens")

    @property
    def visual_width(self) -> int:
        """Width of visual_features."""
        return self.vision.out_hidden_size if isinstance(self.vision, QwenVisionConfig) else self.vision.hidden_size

    def unpruned_positions(self, pruning: PruningConfig) -> bool:
        """Whether rows have their positions in the unpruned prompt: with M-RoPE, or if asked for."""
        return bool(self.decoder.mrope_section) or pruning.positions == "original"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelSpec:
        towers: dict[str, type[VisionConfig]] = {"clip": ClipVisionConfig, "qwen2_5_vl": QwenVisionConfig}
        vision, decoder = dict(data["vision"]), dict(data["decoder"])
        if "full_attention_layers" in vision:
            vision["full_attention_layers"] = tuple(vision["full_attention_layers"])
        decoder["mrope_section"] = tuple(decoder["mrope_section"])
        parts = {
            "vision": towers[vision["kind"]](**vision),
            "projector": None if data["projector"] is None else ProjectorConfig(**data["projector"]),
            "decoder": DecoderConfig(**decoder),
            "tile_resolutions": tuple((height, width) for height, width in data["tile_resolutions"]),
        }
        return cls(**{**data, **parts})


def _check_vision(vision: VisionConfig) -> None:
    for name in ("hidden_size", "intermediate_size", "num_heads"):
        _between(f"vision {name}", getattr(vision, name), _LARGE)
    _between("num_channels", vision.num_channels, 16)
    if vision.hidden_size % vision.num_heads:
        raise ValueError("vision heads do not divide evenly")
    if isinstance(vision, ClipVisionConfig):
        _between("vision layers", vision.feature_layers, 1024)
        _between("image_size", vision.image_size, 1 << 14)
        _between("patch_size", vision.patch_size, vision.image_size)
        _small("layer_norm_eps", vision.layer_norm_eps)
        return
    for name, limit in (("num_layers", 1024), ("patch_size", 1024), ("temporal_patch_size", 64), ("merge_size", 64)):
        _between(f"vision {name}", getattr(vision, name), limit)
    _between("out_hidden_size", vision.out_hidden_size, _LARGE)
    _between("window_size in patches", vision.window_patches, 1024)
    _between("image side in patches", vision.max_grid_side, 1 << 20)
    _small("vision rms_norm_eps", vision.rms_norm_eps)
    if not all(0 <= layer < vision.num_layers for layer in vision.full_attention_layers):
        raise ValueError(f"fullatt_block_indexes {list(vision.full_attention_layers)} names layers that are not there")
    if (vision.hidden_size // vision.num_heads) % 4 or vision.window_patches % vision.merge_size:
        raise ValueError("vision heads or windows do not divide evenly")


def _between(name: str, value: int, limit: int) -> None:
    if not 1 <= value <= limit:
        raise ValueError(f"{name} {value} is not between 1 and {limit}")


def _small(name: str, number: float) -> None:
    if not 0 <= number < 1:
        raise ValueError(f"{name} {number} is not between 0 and 1")


@dataclass(frozen=True)
class Graphs:
    """The ONNX models and their contracts, in the order in which they run."""

    models: dict[str, ir.Model]
    contracts: dict[str, GraphContract]
