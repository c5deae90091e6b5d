"""Pictures alone: what the decoder would get of them, without a decoder.

with PictureEncoder("llava-1.5-7b-b64") as encoder:
    for picture in encoder.encode(["cat.jpg", "dog.jpg"]):
        print(picture.features.shape, picture.kept)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sts_export.bundle.manifest import open_bundle
from sts_export.errors import BundleError, RequestError
from sts_export.families.images import open_images
from sts_export.generation.arguments import MOST_THREADS
from sts_export.generation.pictures.stage1 import ENCODER, SELECTOR, Stage1
from sts_export.graphs.needs import TEXT
from sts_export.media.images import ImageSource, load_image
from sts_export.media.prepared import PreparedImage
from sts_export.pruning.per_request import Budget, for_request, keeps_of_image
from sts_export.requests.request import check_count

_NO_TEXT = np.zeros(0, np.int64)


@dataclass(frozen=True)
class EncodedPicture:
    """What the decoder gets of a picture, newlines aside.

    Args:
        features: [kept, width] float32, rows of the tokens that stage 1 keeps.
        kept: [kept] int64, their positions among the picture's visual tokens, in the order of the prompt; those below 0 are
            CLS tokens and come first.
    """

    features: NDArray[np.float32]
    kept: NDArray[np.int64]


@dataclass(frozen=True)
class _Alone:
    """A picture without a prompt (:class:`sts_export.generation.pictures.stage1.Asked`)."""

    images: tuple[PreparedImage]
    keeps: tuple[tuple[int, ...]]
    text_ids: NDArray[np.int64]
    seed: int = 0


class PictureEncoder:
    """The vision encoder and stage 1 of a bundle; the decoder, which is nearly all of it, is not loaded.

    Threads may share it.

    Args:
        bundle: folder written by ``sts-export``.
        backend: one of ``sts_export.backends.choice.BACKENDS``; None as for :class:`sts_export.Pipeline`.
        threads: CPU threads of the engine; None lets it choose.

    Raises:
        BundleError: not a valid bundle, without engines for the backend, or its stage 1 chooses by the prompt.
        BackendError: the engine cannot run it.
        RequestError: no such backend, or threads for one on a GPU.
    """

    def __init__(self, bundle: str | Path, *, backend: str | None = None, threads: int | None = None) -> None:
        if threads is not None:
            check_count("threads", threads, MOST_THREADS)
        from sts_export.backends.choice import open_backend

        whole = open_bundle(bundle)
        self.manifest = manifest = whole.manifest
        if TEXT in manifest.pruning.stage1_needs:
            raise BundleError(
                f"stage 1 {manifest.pruning.stage1.name} of {whole.folder} chooses by the text of the prompt, and pictures "
                "alone have none; export with another method"
            )
        self._images = open_images(whole.folder, manifest.model)
        opened = open_backend(whole.with_graphs(ENCODER, SELECTOR), backend, threads)
        self.backend_name, self._backend = opened.name, opened.backend
        self._stage1 = Stage1(manifest)

    def __enter__(self) -> PictureEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the engine holds."""
        self._backend.close()

    @property
    def width(self) -> int:
        """Of a feature: the decoder's."""
        return self.manifest.model.decoder.hidden_size

    def encode(self, images: Sequence[ImageSource], budget: Budget | None = None) -> list[EncodedPicture]:
        """Each picture on its own, as :meth:`sts_export.Pipeline.generate` gives it to the decoder.

        A stage 1 that draws draws as with the seed 0.

        Args:
            images: paths, bytes or PIL images.
            budget: as for :meth:`sts_export.Pipeline.stream`; of it stage 1 has its part.

        Raises:
            BudgetError, ImageError: one of them is wrong.
            BackendError: the engine failed.
        """
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            raise RequestError(f"images are a list of pictures, not {type(images).__name__}; put one into a list")
        exported = self.manifest.pruning
        asked = for_request(exported, budget)
        found = []
        for source in images:
            prepared = self._images.prepare(load_image(source))
            keeps = keeps_of_image(exported, asked, prepared.num_tokens)
            chosen = self._stage1.choose(self._backend, _Alone((prepared,), (keeps,), _NO_TEXT))
            (rows,) = chosen.visual.values()
            features = self._backend.fetch(rows)[0].astype(np.float32)
            found.append(EncodedPicture(features, chosen.kept[0]))
        return found
