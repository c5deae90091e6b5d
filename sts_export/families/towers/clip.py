"""CLIP's vision tower: crops of one size; a picture is one crop, or a whole crop and tiles."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sts_export.errors import CheckpointError
from sts_export.families.dimensions import between, check_layers, small
from sts_export.families.towers.protocol import FEATURES, Pictures, SizeRanges, check_needs
from sts_export.graphs.configs import Dtype
from sts_export.graphs.contracts import GraphContract
from sts_export.graphs.needs import CLS_FEATURES
from sts_export.graphs.towers.clip_contract import ClipVisionConfig, clip_encoder_contract
from sts_export.graphs.towers.observed import OBSERVED, observed_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from sts_export.media.prepared import ImagePreparer
    from sts_export.media.processor import ImageProcessor

_LONGEST_SIDE = 1 << 14


@dataclass(frozen=True)
class ClipTower:
    """See :class:`sts_export.families.towers.protocol.Tower`."""

    vision: ClipVisionConfig
    pictures: Pictures

    config: ClassVar[type[ClipVisionConfig]] = ClipVisionConfig

    @property
    def gives(self) -> frozenset[str]:
        return frozenset({FEATURES, *OBSERVED, CLS_FEATURES})

    def check(self) -> None:
        vision = self.vision
        check_layers(vision, vision.feature_layers)
        between("image_size", vision.image_size, _LONGEST_SIDE)
        between("patch_size", vision.patch_size, vision.image_size)
        small("layer_norm_eps", vision.layer_norm_eps)
        self._check_tiles()

    def _check_tiles(self) -> None:
        """Tiles are whole crops, and what follows from them is what it says."""
        pictures, size = self.pictures, self.vision.image_size
        if not pictures.tile_resolutions:
            if pictures.max_newlines:
                raise ValueError("newlines without tiles")
            return
        for side in (side for resolution in pictures.tile_resolutions for side in resolution):
            if not size <= side <= _LONGEST_SIDE:
                raise ValueError(f"a side of image_grid_pinpoints, {side}, is not between {size} and {_LONGEST_SIDE}")
        if pictures != tiled_pictures(self.vision, pictures.tile_resolutions):
            raise ValueError("image_grid_pinpoints make another number of tokens")

    @property
    def width(self) -> int:
        return self.vision.hidden_size

    @property
    def num_layers(self) -> int:
        return self.vision.feature_layers

    @property
    def max_crops(self) -> int:
        return self.pictures.max_tokens // self.vision.num_patches

    @property
    def rows_per_crop(self) -> int:
        return self.vision.num_patches

    @property
    def is_fixed_size(self) -> bool:
        return not self.pictures.tile_resolutions

    @property
    def attention_rows(self) -> tuple[int, int]:
        """The CLS token is a row, too; a crop's rows attend to each other."""
        rows = self.vision.num_patches + 1
        return self.max_crops * rows, rows

    def scratch_bytes(self, needs: Set[str]) -> int:
        vision = self.vision
        return observed_bytes(needs, self.max_crops, vision.num_heads, vision.num_patches + 1, vision.head_dim)

    def profile(self) -> SizeRanges:
        return {"crops": (1, self.max_crops, self.max_crops)}

    def derived_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {}

    def contract(self, dtype: Dtype, needs: Set[str] = frozenset()) -> GraphContract:
        check_needs(self, needs)
        return clip_encoder_contract(self.vision, dtype, needs)

    def graph(self, dtype: Dtype, prefix: str, needs: Set[str] = frozenset()) -> ir.Model:
        check_needs(self, needs)
        from sts_export.graphs.towers.clip import clip_encoder

        return clip_encoder(self.vision, dtype, prefix=prefix, needs=needs, max_crops=self.max_crops)

    def check_processor(self, processor: Any, folder: Path) -> None:
        size, crop = self.vision.image_size, processor.crop_size
        if processor.do_center_crop and (not crop or (crop.height, crop.width) != (size, size)):
            text = f"{crop.height} pixels" if crop else "no size"
            raise CheckpointError(
                f"the image processor in {folder} crops to {text}, the vision tower takes {size}; "
                "use the processor files of this model"
            )

    def images(self, processor: ImageProcessor) -> ImagePreparer:
        from sts_export.media.anyres import AnyresImages
        from sts_export.media.fixed import FixedImages

        if self.pictures.tile_resolutions:
            return AnyresImages(processor, self.vision, self.pictures.tile_resolutions)
        return FixedImages(processor, self.vision)


def tiled_pictures(vision: ClipVisionConfig, resolutions: tuple[tuple[int, int], ...]) -> Pictures:
    """Pictures as one whole crop and a grid of tiles.

    Args:
        resolutions: (height, width) in pixels, at least one crop each way.
    """
    tiles = [(height // vision.image_size, width // vision.image_size) for height, width in resolutions]
    tokens = vision.num_patches * (1 + max(down * across for down, across in tiles))
    newlines = vision.grid_side * max(down for down, _ in tiles)
    return Pictures(tokens, newlines, resolutions)


TOWER = ClipTower
