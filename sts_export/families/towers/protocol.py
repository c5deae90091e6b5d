"""What the rest of the package asks of a vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sts_export.graphs.configs import Dtype, VisionConfig
from sts_export.graphs.contracts import GraphContract

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.media.prepared import ImagePreparer
    from sts_export.media.processor import ImageProcessor

# Symbolic dimension of graphs.contracts -> its least, best and largest size.
SizeRanges = dict[str, tuple[int, int, int]]
# What every tower gives to stage 1: visual_features.
FEATURES = "features"


@dataclass(frozen=True)
class Pictures:
    """What pictures become in a model; see :class:`sts_export.families.spec.ModelSpec`.

    Args:
        max_tokens: visual tokens of the largest picture.
        max_newlines: its newline rows.
        tile_resolutions: (height, width) in pixels that a picture may be tiled at.
    """

    max_tokens: int
    max_newlines: int = 0
    tile_resolutions: tuple[tuple[int, int], ...] = ()


class Tower(Protocol):
    """A vision tower with its dimensions, and all that depends on which kind of tower it is.

    Attributes:
        config: class of its dimensions; the default of its field ``kind`` names the tower.
    """

    config: ClassVar[type[Any]]

    def __init__(self, vision: Any, pictures: Pictures) -> None: ...

    @property
    def vision(self) -> VisionConfig:
        """Its dimensions."""

    @property
    def pictures(self) -> Pictures:
        """What pictures become."""

    def check(self) -> None:
        """Raises ValueError for a dimension that no tower has, or for tokens that these pictures cannot have."""

    @property
    def gives(self) -> frozenset[str]:
        """What a pruning stage may need of it, of the names in ``graphs.needs``; and ``features``, always."""

    # Sizes

    @property
    def width(self) -> int:
        """Of a row of visual_features."""

    @property
    def num_layers(self) -> int:
        """Layers that run."""

    @property
    def max_crops(self) -> int:
        """Crops of the largest picture."""

    @property
    def rows_per_crop(self) -> int:
        """Most rows of visual_features that one crop has."""

    @property
    def is_fixed_size(self) -> bool:
        """Whether all pictures have the same number of tokens."""

    @property
    def attention_rows(self) -> tuple[int, int]:
        """Rows of the largest picture in a layer, and how many rows one of them attends to at most."""

    def scratch_bytes(self, needs: Set[str]) -> int:
        """About how much the nodes of these needs hold at once beside what a layer holds, for the largest picture."""

    def profile(self) -> SizeRanges:
        """Sizes of the encoder's inputs, from the smallest to the largest picture."""

    def derived_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Symbolic dimensions of the encoder's outputs that are none of its inputs'.

        Args:
            sizes: of the inputs' symbolic dimensions.
        """

    # Graph

    def contract(self, dtype: Dtype, needs: Set[str] = frozenset()) -> GraphContract:
        """Inputs and outputs of the vision encoder.

        Args:
            needs: of stage 1, some of ``gives``; each but ``features`` is an output of that name after visual_features.

        Raises:
            ValueError: the tower does not give one of them.
        """

    def graph(self, dtype: Dtype, prefix: str, needs: Set[str] = frozenset()) -> ir.Model:
        """The vision encoder; its parameters are named ``prefix`` + the tower's own names.  Imports onnxscript."""

    # Pictures

    def check_processor(self, processor: Any, folder: Path) -> None:
        """Compare the image processor's settings with the tower's dimensions.

        Args:
            processor: transformers' image processor, with every setting as an attribute.
            folder: where its settings lie, for messages.

        Raises:
            CheckpointError: it makes pictures that the tower cannot take.
        """

    def images(self, processor: ImageProcessor) -> ImagePreparer:
        """The way from a picture to the encoder's inputs.

        Raises:
            CheckpointError: the processor makes something else.
        """


def check_needs(tower: Tower, needs: Set[str]) -> None:
    """Raises ValueError where the tower does not give all of ``needs``."""
    if missing := sorted(needs - tower.gives):
        raise ValueError(f"the vision tower does not give {', '.join(missing)}")
