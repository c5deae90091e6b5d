"""What a family makes of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sts_export.graphs.configs import DecoderConfig, ProjectorConfig, VisionConfig
from sts_export.graphs.contracts import GraphContract

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class ModelSpec:
    """Dimensions of a whole vision-language model.

    ``max_positions`` is the decoder's position limit; ``default_chat_template`` serves checkpoints without one.
    """

    family: str
    vision: VisionConfig
    projector: ProjectorConfig
    decoder: DecoderConfig
    image_token_id: int
    max_positions: int
    default_chat_template: str

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
