"""A prompt and its pictures → what the engine takes.

Everything that a bundle's companion files are needed for is here, so that the exporter can try a checkpoint's files out with
the code that will run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.errors import PromptError
from sts_export.families.images import open_images
from sts_export.families.spec import ModelSpec
from sts_export.graphs.contracts import VISUAL_ROW
from sts_export.graphs.needs import TEXT
from sts_export.media.images import ImageSource, load_image
from sts_export.media.prepared import ImagePreparer, PreparedImage
from sts_export.pruning.config import PruningConfig
from sts_export.pruning.per_request import keeps_of_image
from sts_export.requests.generation_defaults import GenerationDefaults, read_generation_defaults
from sts_export.requests.messages import Messages
from sts_export.requests.prompt import ChatTokenizer


@dataclass(frozen=True)
class Inputs:
    """A prompt as the engine takes it.

    Args:
        input_ids: [sequence] int64, VISUAL_ROW in every place that an image keeps after stage 1, newlines included.
        images: with ``keeps``, how many tokens of each are left in every decoder part.
    """

    input_ids: NDArray[np.int64]
    images: tuple[PreparedImage, ...]
    keeps: tuple[tuple[int, ...], ...]

    @property
    def text_tokens(self) -> int:
        """Tokens of the prompt that are no image's."""
        return int(np.count_nonzero(self.input_ids != VISUAL_ROW))


@dataclass(frozen=True)
class Preprocessor:
    """Tokenizer, chat template, image processor and generation settings of one model.

    Args:
        pruning: of requests that ask for no other.
    """

    model: ModelSpec
    pruning: PruningConfig
    tokenizer: ChatTokenizer
    images: ImagePreparer
    generation_defaults: GenerationDefaults

    @classmethod
    def open(
        cls, folder: Path, model: ModelSpec, pruning: PruningConfig, image_settings: Mapping[str, Any] | None = None
    ) -> Preprocessor:
        """Those of a checkpoint or bundle.

        Args:
            image_settings: of the image processor, in place of the folder's own.

        Raises:
            CheckpointError: one of them is missing, damaged or of another model.
        """
        tokenizer = ChatTokenizer.open(folder, model.default_chat_template, model.image_token)
        defaults = read_generation_defaults(folder, model.decoder.vocab_size)
        return cls(model, pruning, tokenizer, open_images(folder, model, image_settings), defaults)

    def prepare(
        self,
        prompt: str | Messages,
        sources: Sequence[ImageSource],
        pruning: PruningConfig | None = None,
        cache_rows: int | None = None,
    ) -> Inputs:
        """A prompt with its images, in the order of their places.

        Args:
            pruning: of this request (:func:`sts_export.pruning.per_request.for_request`).
            cache_rows: of the first decoder part.  A text that is certain to need more is not tokenized, and pictures that
                need more than twice as many are not prepared to the last one: some thousands of small files would fill the
                memory.

        Raises:
            BudgetError: it keeps more of an image than the bundle can.
            ImageError, PromptError: one of them is wrong.
            CheckpointError: the tokenizer is another model's.
        """
        pieces = self.tokenizer.pieces(prompt, len(sources))  # a wrong prompt is cheaper to find than images are to prepare
        if cache_rows is not None:
            self._check_length(pieces, cache_rows)
        asked = self.pruning if pruning is None else pruning
        images: list[PreparedImage] = []
        keeps: list[tuple[int, ...]] = []
        rows: list[int] = []
        for source in sources:
            image = self.images.prepare(load_image(source))
            of_parts = keeps_of_image(self.pruning, asked, image.num_tokens)
            images.append(image)
            keeps.append(of_parts)
            rows.append(of_parts[0] + image.num_newlines)
            if cache_rows is not None and sum(rows) > 2 * cache_rows:
                raise PromptError(
                    f"the prompt is too long: {len(rows)} of its {len(sources)} images take {sum(rows)} rows after stage 1, "
                    f"and there are {cache_rows} cache rows; give far fewer, or export with a larger --max-visual-tokens"
                )
        inputs = Inputs(self._encode(pieces, rows), tuple(images), tuple(keeps))
        if inputs.input_ids[-1] == VISUAL_ROW:
            raise PromptError("the prompt ends with an image, and what comes next depends on its last word: put text after it")
        if images and not inputs.text_tokens and TEXT in self.pruning.stage1_needs:
            raise PromptError(
                f"stage 1 {self.pruning.stage1.name} chooses by the text of the prompt, which has none: ask something about "
                "the image"
            )
        return inputs

    def input_ids(self, prompt: str | Messages, rows_per_image: Sequence[int]) -> NDArray[np.int64]:
        """Prompt token ids [sequence], all of the model's vocabulary, but VISUAL_ROW as often as each image has rows.

        Raises:
            PromptError: the prompt is malformed, has more or fewer places for images, or a token that the model does not have.
            CheckpointError: the tokenizer is another model's.
        """
        return self._encode(self.tokenizer.pieces(prompt, len(rows_per_image)), rows_per_image)

    def _check_length(self, pieces: Sequence[str], cache_rows: int) -> None:
        """Raises PromptError for a text that has more tokens than there are cache rows, whatever they are."""
        length = sum(map(len, pieces))
        if length <= cache_rows:  # which the usual prompt is: the tokenizer's longest token is not looked for
            return
        if (fewest := self.tokenizer.bound.fewest_tokens("".join(pieces))) > cache_rows:
            raise PromptError(
                f"the prompt is too long: {length} characters are {fewest} text tokens at least, and there are {cache_rows} "
                "cache rows; shorten it or export with a larger --max-prompt-tokens"
            )

    def _encode(self, pieces: Sequence[str], rows_per_image: Sequence[int]) -> NDArray[np.int64]:
        """The check of the vocabulary is here since engines read past the end of their embedding, or fail."""
        ids = self.tokenizer.encode(pieces, self.model.image_token_id, rows_per_image)
        rows = np.where(ids == self.model.image_token_id, VISUAL_ROW, ids)
        vocabulary = self.model.decoder.vocab_size
        beyond = rows[rows >= vocabulary]
        if beyond.size:
            text = self.tokenizer.token_text(int(beyond[0]))
            raise PromptError(
                f"the prompt has {text!r}, token {beyond[0]} of the tokenizer, and the model's "
                f"vocabulary has {vocabulary}, 0 to {vocabulary - 1}; leave it out, or export with the tokenizer of this model"
            )
        return rows
