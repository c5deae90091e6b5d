"""From what the user typed after --model to a checkpoint folder.

A model on the Hugging Face hub goes into the cache that huggingface_hub keeps, in its layout, so that other programs find it
there and it finds what they downloaded.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from sts_export.errors import CheckpointError
from sts_export.families import aliases
from sts_export.hub.repository import Repository
from sts_export.paths import library_path

DEMO = "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A branch, tag, refs/pr/N or commit.  It becomes a path below the cache's refs/, so never "..".
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*")


def locate_model(model: str, *, cache_dir: Path | None = None, endpoint: str | None = None) -> Path:
    """The folder of an alias, a hub id, either with ``@revision``, (downloaded if need be) or a local folder.

    Args:
        model: what the user typed.
        cache_dir: the hub cache; default: huggingface_hub's own (HF_HOME, HF_HUB_CACHE).
        endpoint: address of the hub; default: huggingface_hub's own (HF_ENDPOINT).

    Raises:
        CheckpointError: unknown name, no access, nothing here that can be exported, or offline and not in the cache.
        OutputError: the cache's disk has no room or cannot be written to.
        StsExportError: the hub or the connection failed; the same command may work later.
    """
    if model == DEMO:
        from sts_export.demo import MODEL_DIR

        return MODEL_DIR
    path = library_path(model)
    if path.exists():
        return path
    from sts_export.hub.snapshot import download

    return download(_repository(model, cache_dir, endpoint))


def _repository(model: str, cache_dir: Path | None, endpoint: str | None) -> Repository:
    from huggingface_hub import constants

    name, at, revision = model.partition("@")
    hub_id = aliases().get(name, name)
    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(_unknown_name(name))
    if at and not _REVISION.fullmatch(revision):
        raise CheckpointError(f"{revision!r} cannot be a revision of {hub_id}: give a branch, tag or commit after the @")
    return Repository(hub_id, revision or "main", cache_dir or Path(constants.HF_HUB_CACHE), endpoint)


def _unknown_name(name: str) -> str:
    known = [DEMO, *aliases()]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    if near:
        return f"unknown model {name!r}: give a folder or a hub id such as org/name; did you mean {' or '.join(near)}?"
    return f"unknown model {name!r}: give a folder, a hub id such as org/name, or one of {', '.join(known)}"
