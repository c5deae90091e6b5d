"""The tokens that end an answer, as transformers' ``generate`` finds them.

generation_config.json decides alone where there is one, even if it names none; else config.json: the top level before the
decoder's part.  The tokenizer's own end token does not count.  Source: transformers ``generation/utils.py``,
``adjust_generation_fn``, and ``GenerationConfig.from_model_config``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sts_export.checkpoints.checkpoint import read_json
from sts_export.errors import CheckpointError

_KEY = "eos_token_id"
# Where transformers looks in config.json.
_PLACES = (_KEY, "decoder", "generator", "text_config")


def read_end_tokens(folder: Path) -> tuple[int, ...]:
    """Ids from the files of a checkpoint or bundle, each once; none where nothing names one, and answers then only end at
    their length.

    Raises:
        CheckpointError: a file that is not valid JSON, or something else than token ids.
    """
    generation_file, config_file = folder / "generation_config.json", folder / "config.json"
    if generation_file.is_file():
        return _checked(read_json(generation_file).get(_KEY), generation_file)
    if config_file.is_file():
        return _checked(_from_model_config(read_json(config_file)), config_file)
    return ()


def _from_model_config(config: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_model_config({name: config[name] for name in _PLACES if name in config}).eos_token_id


def _checked(value: Any, source: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise CheckpointError(f"{source} has {_KEY} {value!r}; it must be a token id or a list of them")
    return tuple(dict.fromkeys(ids))
