"""A tokenizer for prompts that hold the image token as text: only places of images become the token.

Tokenizers find an added token wherever its text stands.  Here the image token has another text, a character that no prompt may
have, so that what was its text is tokenized by the model like any other, in one pass over the whole prompt.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLACE = "\ufdd0"  # a noncharacter: Unicode leaves it to programs, and texts have no use for it
_AS_IT_STANDS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def tokenizer_of_places(tokenizer: Tokenizer, image_token: str) -> Tokenizer:
    """A copy whose image token is written PLACE; all ids are the same, and no text yields that of the image token.

    Args:
        tokenizer: of the tokenizers library; its truncation, padding and ``encode_special_tokens`` are taken over.
        image_token: text of an added token, or of an ordinary one of its vocabulary.

    Source: tokenizers ``tokenizer/serialization.rs`` and ``tokenizer/added_vocabulary.rs``: an added token that the model's
    vocabulary has, too, takes its id from there.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    added: list[dict[str, Any]] = content["added_tokens"]
    ours = [token for token in added if token["content"] == image_token]
    if not ours and (token_id := tokenizer.token_to_id(image_token)) is not None:
        added.append({"id": token_id, "content": PLACE, **_AS_IT_STANDS})
    for token in ours:
        token["content"] = PLACE
    _rename(content["model"], image_token)
    copy: Tokenizer = Tokenizer.from_str(json.dumps(content))
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    return copy


def _rename(model: dict[str, Any], image_token: str) -> None:
    """The vocabulary's own entry of the image token, which merges or a whole-word look-up could reach, in place."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict) and image_token in vocabulary:
        vocabulary[PLACE] = vocabulary.pop(image_token)
    elif isinstance(vocabulary, list):  # Unigram: pairs of text and score, by id
        model["vocab"] = [[PLACE if text == image_token else text, score] for text, score in vocabulary]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if image_token not in (*pair, "".join(pair))]
