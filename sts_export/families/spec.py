"""What a family makes of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sts_export.graphs.configs import DecoderConfig, ProjectorConfig, VisionConfig
from sts_export.graphs.contracts import GraphContract

if TYPE_CHECKING:
    import onnx_ir as ir


_LARGE = 1 << 24


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a whole vision-language model.

    ``max_positions`` is the decoder's position limit; ``default_chat_template`` serves checkpoints without one.

    Raises:
        ValueError: a dimension that no model has; graphs for it would be nonsense or take forever to build.
    """

    family: str
    vision: VisionConfig
    projector: ProjectorConfig
    decoder: DecoderConfig
    image_token_id: int
    max_positions: int
    default_chat_template: str

    def __post_init__(self) -> None:
        vision, decoder = self.vision, self.decoder
        for name, value, limit in (
            ("layers", decoder.num_layers, 1024),
            ("vision layers", vision.feature_layers, 1024),
            ("head_dim", decoder.head_dim, 4096),
            ("patch_size", vision.patch_size, vision.image_size),
            ("image_size", vision.image_size, 1 << 14),
            ("num_channels", vision.num_channels, 16),
            ("num_key_value_heads", decoder.num_kv_heads, decoder.num_heads),
            ("max_position_embeddings", self.max_positions, _LARGE),
            *(
                (name, getattr(decoder, name), _LARGE)
                for name in ("hidden_size", "intermediate_size", "num_heads", "vocab_size")
            ),
            *((f"vision {name}", getattr(vision, name), _LARGE) for name in ("hidden_size", "intermediate_size", "num_heads")),
        ):
            if not 1 <= value <= limit:
                raise ValueError(f"{name} {value} is not between 1 and {limit}")
        if decoder.head_dim % 2 or decoder.num_heads % decoder.num_kv_heads or vision.hidden_size % vision.num_heads:
            raise ValueError("heads do not divide evenly")
        for name, number in (("rope_theta", decoder.rope_theta), ("rope factor", decoder.rope_factor)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} {number} is not a positive number")
        for name, number in (("rms_norm_eps", decoder.rms_norm_eps), ("layer_norm_eps", vision.layer_norm_eps)):
            if not 0 <= number < 1:
                raise ValueError(f"{name} {number} is not between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelSpec:
        parts = {"vision": VisionConfig, "projector": ProjectorConfig, "decoder": DecoderConfig}
        return cls(**{key: parts[key](**item) if key in parts else item for key, item in data.items()})


@dataclass(frozen=True)
class Capacities:
    """Rows of the static KV caches (METHOD, "shrinking KV buffers").

    lower = prompt text + K + new tokens; upper = prompt text + K' + new tokens.
    """

    prompt_tokens: int
    new_tokens: int
    lower: int
    upper: int


@dataclass(frozen=True)
class Graphs:
    """The four ONNX models and their contracts, in the order in which they run."""

    models: dict[str, ir.Model]
    contracts: dict[str, GraphContract]
