"""From what the user typed after --model to a checkpoint folder."""

from __future__ import annotations

import re
from pathlib import Path

from sts_export.errors import CheckpointError
from sts_export.paths import user_path

ALIASES = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
}
DEMO = "demo"
# Weights, configuration, tokenizer and processor; never the pickles that some repositories also hold.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate_model(model: str) -> Path:
    """The folder of an alias, a hub id (downloaded if need be) or a local folder.

    Raises:
        CheckpointError: unknown name, or the download failed.
    """
    if model == DEMO:
        from sts_export.demo import MODEL_DIR

        return MODEL_DIR
    path = user_path(model)
    if path.exists():
        return path
    hub_id = ALIASES.get(model, model)
    if not _HUB_ID.fullmatch(hub_id):
        known = ", ".join([DEMO, *ALIASES])
        raise CheckpointError(f"unknown model {model!r}: give a folder, a hub id such as org/name, or one of {known}")
    return _download(hub_id)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except GatedRepoError:
        raise CheckpointError(f"{hub_id} is gated: accept its licence on the hub, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{hub_id} is not on the hub (or is private): check the name, or run `hf auth login`") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{hub_id} is not in the local cache and the hub cannot be reached: go online or give a folder"
        ) from None
    except HFValidationError:
        raise CheckpointError(f"{hub_id!r} is neither a folder nor a valid hub id: check the name") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"downloading {hub_id} failed ({reason}): try again, or give a local folder") from None
