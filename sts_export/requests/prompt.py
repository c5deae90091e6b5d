"""Prompts and messages → token ids, and back, by the checkpoint's own tokenizer and chat template (no torch).

An image token in a prompt that is a string is a place for an image.  In the text of messages it is text: places are their
``{"type": "image"}`` parts.  Other special tokens in user text are followed as transformers follows them by default: ``</s>``
becomes the end token.  Whoever serves strangers and minds removes those from the text first.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sts_export.checkpoints.checkpoint import read_json
from sts_export.errors import CheckpointError, PromptError
from sts_export.media.processor import one_line
from sts_export.requests.end_tokens import read_end_tokens
from sts_export.requests.messages import Messages, PlacedText, RawText, checked_messages, strings
from sts_export.requests.token_bytes import TokenBytes
from sts_export.requests.tokenizing.image_literals import PLACE, tokenizer_of_places
from sts_export.requests.tokenizing.text_bounds import TextBound, text_bound

_PROBE = "sts export probe"
_PLACES = 'give one image for each placeholder of a prompt or {"type": "image"} entry of messages'


class ChatTokenizer:
    """Tokenizer and chat template of one model; made by :meth:`open`.  Threads may share one.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: Jinja chat template.
        image_token: text that stands for one image in a prompt.
        eos_token_ids: tokens that end an answer; without any, only its length does.
        source: folder it came from, for messages.
        has_own_template: the template is the folder's, not the family's.

    Raises:
        CheckpointError: the template cannot be rendered.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        image_token: str,
        eos_token_ids: tuple[int, ...],
        source: Path,
        *,
        has_own_template: bool = True,
    ) -> None:
        self.has_own_template = has_own_template
        self._tokenizer = tokenizer
        # Settings of tokenizer.json that every call would turn off again: to change them while another thread encodes fails.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self._of_places: Any = None
        self._lock = threading.Lock()
        self._template = template
        self._source = source
        self.image_token = image_token
        self.eos_token_ids = eos_token_ids
        self._place = image_token
        self._content_is_list = self._template_takes_lists()
        self._mark_places()
        # Asked one by one: the whole vocabulary as a dictionary is 35 MB for Qwen2.5-VL.
        ids = (tokenizer.backend_tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_token_ids = frozenset(index for index in ids if index is not None)
        self.token_bytes = TokenBytes(tokenizer.backend_tokenizer)

    @classmethod
    def open(cls, folder: Path, default_template: str | None = None, image_token: str = "<image>") -> ChatTokenizer:
        """Open the tokenizer of a checkpoint or bundle.

        The chat template is the first one of: processor_config.json, chat_template.json, chat_template.jinja (the order
        of transformers' processors), the tokenizer's own, ``default_template``.

        Args:
            folder: holds tokenizer.json or other tokenizer files, and perhaps generation_config.json.  It needs the
                checkpoint's config.json too: transformers chooses the tokenizer's class by the model type in it, and
                without it rebuilds Llama tokenizers in a way that tokenizes differently after an image.
            default_template: for checkpoints without a template, such as a family's ``default_chat_template``.
            image_token: for checkpoints that do not name it.

        Raises:
            CheckpointError: tokenizer or template missing or damaged.
        """
        from transformers import AutoTokenizer

        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give the folder of a checkpoint or bundle")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the formats of two libraries, each with its own errors
            raise CheckpointError(
                f"cannot open the tokenizer in {folder} ({one_line(error)}); copy tokenizer.json and tokenizer_config.json "
                "from the original model"
            ) from error
        if not getattr(tokenizer, "is_fast", False):
            raise CheckpointError(f"{folder} has no fast tokenizer; save it with transformers so that it has a tokenizer.json")
        processor_file = folder / "processor_config.json"
        processor_config = read_json(processor_file) if processor_file.is_file() else {}
        own = _read_template(folder, processor_config, tokenizer)
        template = own or default_template
        if not template:
            raise CheckpointError(f"{folder} has no chat template; add the model's chat_template.jinja to it")
        token = _find_image_token(tokenizer, processor_config) or image_token
        return cls(tokenizer, template, token, read_end_tokens(folder), folder, has_own_template=own is not None)

    def render(self, prompt_or_messages: str | Messages, num_images: int) -> str:
        """The text the model is asked with, as transformers renders it; every image stands in it as one ``image_token``.

        Args and Raises: as for :meth:`pieces`.
        """
        return self.image_token.join(self.pieces(prompt_or_messages, num_images))

    def pieces(self, prompt_or_messages: str | Messages, num_images: int) -> list[str]:
        """The text the model is asked with, cut at the places of its images: ``num_images + 1`` strings.

        Args:
            prompt_or_messages: a prompt, which becomes one user turn with the images before the text, or where the
                prompt itself has image tokens, at these; or messages, each with ``role`` and ``content``: a string or
                parts ``{"type": "text", "text": ...}`` and ``{"type": "image"}``, whose texts are nothing but text; or
                :class:`RawText`.
            num_images: images that come with it.

        Raises:
            PromptError: nothing to say, malformed messages, a template that refuses them, or more or fewer places for
                images than images.
        """
        given: Messages
        if isinstance(prompt_or_messages, RawText):
            pieces = prompt_or_messages.split(self.image_token)
            as_text = f"every {self.image_token} of a raw text is a place"
            if not any(piece.strip() for piece in pieces):
                raise PromptError("the prompt is empty; ask something about the image")
            return _checked_pieces(pieces, self.image_token, num_images, as_text)
        if isinstance(prompt_or_messages, str):
            given = self._as_messages(prompt_or_messages, num_images)
            as_text = f"to send {self.image_token} as text, send messages (--messages, or a list of them in Python)"
        else:
            given = prompt_or_messages
            as_text = f"{self.image_token} in the text of messages is text"
        messages = self._with_places(checked_messages(given))
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        if not any(text.replace(self._place, "").strip() for text in texts):
            raise PromptError("the prompt is empty; ask something about the image")
        try:
            text = self._apply_template(messages if self._content_is_list else self._with_text_content(messages))
        except Exception as error:  # templates are programs: they raise what they like
            raise PromptError(f"the model's chat template refuses these messages: {one_line(error)}; change them") from error
        return _checked_pieces(text.split(self._place), self.image_token, num_images, as_text)

    def with_system(self, system: str, prompt: str, num_images: int) -> Messages:
        """One user turn, its images where :meth:`render` would put them, after a system message."""
        return [{"role": "system", "content": system}, *self._as_messages(prompt, num_images)]

    def encode(self, rendered: str | Sequence[str], image_token_id: int, tokens_per_image: Sequence[int]) -> NDArray[np.int64]:
        """Token ids ``[S] int64`` of a rendered prompt, as LlavaProcessor yields them.

        Args:
            rendered: from :meth:`pieces`; or a text in which every image token is a place.
            image_token_id: the model's id of the image token.
            tokens_per_image: how often the token of each image is repeated; at least 1 each.

        Raises:
            PromptError: more or fewer places in ``rendered`` than numbers given, or a number below 1.
            CheckpointError: the tokenizer does not map the image token to ``image_token_id``.
        """
        pieces = rendered.split(self.image_token) if isinstance(rendered, str) else list(rendered)
        places = len(pieces) - 1
        if places != len(tokens_per_image):
            raise PromptError(
                f"the prompt has {places} {self.image_token} placeholder(s) but {len(tokens_per_image)} image(s) were given; "
                f"{_PLACES}"
            )
        if any(count < 1 for count in tokens_per_image):
            raise PromptError(f"every image needs at least 1 token, not {list(tokens_per_image)}; raise the budget")
        # A template may write the BOS token itself; transformers' processors then add none either.
        bos = self._tokenizer.bos_token
        add_special_tokens = not (bos and pieces[0].startswith(bos))
        if self.image_token.join(pieces).split(self.image_token) == pieces:
            text = _expanded(pieces, self.image_token, tokens_per_image)
            # verbose=False: the length is checked against the bundle's capacity, not against a number in tokenizer_config.json.
            found = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        else:  # the image token stands in the text, too
            text = _expanded(pieces, PLACE, tokens_per_image)
            found = self._tokenizer_of_places().encode(text, add_special_tokens=add_special_tokens).ids
        ids = np.asarray(found, dtype=np.int64)
        made = int(np.count_nonzero(ids == image_token_id))
        if made != sum(tokens_per_image):
            raise CheckpointError(
                f"the tokenizer in {self._source} makes {made} tokens with id {image_token_id} of {sum(tokens_per_image)} "
                f"{self.image_token}; use the tokenizer that belongs to the model"
            )
        return ids

    def _tokenizer_of_places(self) -> Any:
        """Made when it is first needed: it is a second copy of the vocabulary."""
        with self._lock:
            if self._of_places is None:
                self._of_places = tokenizer_of_places(self._tokenizer.backend_tokenizer, self.image_token)
            return self._of_places

    @property
    def backend(self) -> Any:
        """``tokenizers.Tokenizer``; nobody changes it."""
        return self._tokenizer.backend_tokenizer

    @cached_property
    def bound(self) -> TextBound:
        """How few tokens a text can have."""
        return text_bound(self.backend)

    def token_text(self, token_id: int) -> str:
        """How the tokenizer writes a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        # No clean-up of spaces: transformers ignores it for these tokenizers, and it would depend on what follows.
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _as_messages(self, prompt: str, num_images: int) -> list[dict[str, Any]]:
        # Places written by the user are left in the text: templates for LLaVA would move image parts to the front.
        num_parts = 0 if self.image_token in prompt else num_images
        content = [{"type": "image"}] * num_parts + [{"type": "text", "text": PlacedText(prompt)}]
        return [{"role": "user", "content": content}]

    def _with_places(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages in whose strings ``_place`` is a place and nothing else."""
        if any(self._place in text for text in strings(messages, self.image_token)):
            raise PromptError(f"the prompt has {self._place!r}, which marks places of images here; leave it out")
        return [{**message, "content": [self._with_place(part) for part in message["content"]]} for message in messages]

    def _with_place(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        text = part.get("text")
        return {**part, "text": text.replace(self.image_token, self._place)} if isinstance(text, PlacedText) else part

    def _with_text_content(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For templates of text-only chat models: parts joined, every image on its own line."""
        return [
            {
                **message,
                "content": "".join(
                    part["text"] if part["type"] == "text" else f"{self._place}\n" for part in message["content"]
                ),
            }
            for message in messages
        ]

    def _apply_template(self, messages: list[dict[str, Any]]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        return text

    def _mark_places(self) -> None:
        """Let the template write PLACE for an image, so that no text can be taken for it.

        Not where it makes the image token of something else than its text; there no text may hold the image token.
        """
        template, place = self._template, self._place
        plain = self._render_probe()
        self._template, self._place = template.replace(self.image_token, PLACE), PLACE
        if plain is None or self._render_probe() != plain.replace(self.image_token, PLACE):
            self._template, self._place = template, place

    def _render_probe(self) -> str | None:
        """A turn with an image; None where the template refuses it."""
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _PROBE}]}]
        try:
            return self._apply_template(messages if self._content_is_list else self._with_text_content(messages))
        except Exception:  # templates are programs: they raise what they like
            return None

    def _template_takes_lists(self) -> bool:
        """Whether the template walks through lists of parts; one made for strings fails or prints the list itself."""
        parts = [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}]
        try:
            text = self._apply_template(parts)
        except Exception:  # templates are programs: they raise what they like
            text = ""
        if _PROBE in text and "'type'" not in text and '"type"' not in text:
            return True
        try:
            text = self._apply_template([{"role": "user", "content": _PROBE}])
        except Exception as error:
            raise CheckpointError(
                f"the chat template in {self._source} does not work ({one_line(error)}); restore the original file"
            ) from error
        if _PROBE not in text:
            raise CheckpointError(f"the chat template in {self._source} leaves out the prompt; restore the original file")
        return False


def _checked_pieces(pieces: list[str], image_token: str, num_images: int, as_text: str) -> list[str]:
    """Raises PromptError: no text that can be sent, or more or fewer places for images than images."""
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        raise PromptError("the prompt has characters that are no text (lone surrogates); send valid UTF-8") from None
    if len(pieces) - 1 != num_images:
        raise PromptError(
            f"the prompt has {len(pieces) - 1} {image_token} placeholder(s) but {num_images} image(s) were given; "
            f"{_PLACES}, or a prompt without placeholders; {as_text}"
        )
    return pieces


def _expanded(pieces: Sequence[str], token: str, counts: Sequence[int]) -> str:
    """``token`` between the pieces, so often each."""
    return pieces[0] + "".join(token * count + piece for count, piece in zip(counts, pieces[1:], strict=True))


def _read_template(folder: Path, processor_config: dict[str, Any], tokenizer: Any) -> str | None:
    candidates: list[Any] = [processor_config.get("chat_template")]
    legacy_file = folder / "chat_template.json"
    if legacy_file.is_file():
        candidates.append(read_json(legacy_file).get("chat_template"))
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        try:
            candidates.append(template_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{template_file} cannot be read ({one_line(error)}); download it again") from error
    candidates.append(tokenizer.chat_template)
    for candidate in candidates:
        template = candidate.get("default") if isinstance(candidate, dict) else candidate
        if isinstance(template, str) and template:
            return template
    return None


def _find_image_token(tokenizer: Any, processor_config: dict[str, Any]) -> str | None:
    for token in (getattr(tokenizer, "image_token", None), processor_config.get("image_token")):
        if isinstance(token, str) and token:
            return token
    return None
