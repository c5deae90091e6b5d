"""What an operator decides, as it stands in ``parameters`` of config.pbtxt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sts_export.backends.choice import BACKENDS
from sts_export.errors import RequestError
from sts_export.generation.pipeline import BATCH_SIZE
from sts_export.generation.scheduling.scheduler import MOST_WAITING
from sts_export.paths import user_path
from sts_export.requests.request import check_count
from sts_export.serving.pictures.rules import PictureRules
from sts_export.serving.sizes import read_size

BUNDLE = "bundle"  # beside model.py
_WORDS = {"true": True, "false": False}
# Names of other backends' and Triton's own parameters, which are for them.
_OF_TRITON = ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")


@dataclass(frozen=True)
class ModelSettings:
    """Of one model.

    Args:
        bundle: folder; relative: to the folder of model.py.
        backend: one of ``sts_export.backends.choice.BACKENDS``; empty: the best that bundle and machine offer.
        threads: CPU threads; 0: the engine's choice.
        slots: requests that are answered together, by each instance.
        max_queue_size: requests that may be prepared or wait for a slot; more are refused as unavailable.
        longest_wait: seconds that a request may wait for a slot; 0: as long as it takes.
        feature_cache: bytes for features of the last pictures; 0: none.
        reuse_prefixes: whether turns of a chat go on from what a slot still holds.
        allow_image_hosts: that pictures are fetched from.
        allow_image_folder: in which file URLs may name pictures; empty: none.
        max_picture: bytes of a picture's file.

    Raises:
        RequestError: a value is wrong.
    """

    bundle: str = BUNDLE
    backend: str = ""
    threads: int = 0
    slots: int = BATCH_SIZE
    max_queue_size: int = MOST_WAITING
    longest_wait: float = 0.0
    feature_cache: int = 256 << 20
    reuse_prefixes: bool = True
    allow_image_hosts: tuple[str, ...] = ()
    allow_image_folder: str = ""
    max_picture: int = 20 << 20

    def __post_init__(self) -> None:
        if self.backend and self.backend not in BACKENDS:
            raise RequestError(f"there is no backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        check_count("slots", self.slots)
        check_count("max_queue_size", self.max_queue_size)
        if self.threads:
            check_count("threads", self.threads)
        if not 0 <= self.longest_wait < math.inf:
            raise RequestError(f"longest_wait must be seconds from 0 on, not {self.longest_wait:g}; 0 is no limit")

    @property
    def picture_rules(self) -> PictureRules:
        """Where pictures may come from.

        Raises:
            RequestError: a host is malformed, or the folder is none here.
        """
        folder = user_path(self.allow_image_folder) if self.allow_image_folder else None
        return PictureRules(self.allow_image_hosts, folder, self.max_picture)

    def bundle_folder(self, model_folder: Path) -> Path:
        """Where the bundle is.

        Args:
            model_folder: that of model.py.
        """
        return model_folder / self.bundle

    def parameters(self) -> dict[str, str]:
        """Key -> value, all of them."""
        return {item.name: _written(getattr(self, item.name)) for item in fields(self)}


def read_parameters(given: Mapping[str, str]) -> ModelSettings:
    """Inverse of :meth:`ModelSettings.parameters`; what is not given has its default.

    Raises:
        RequestError: a key is not known, or a value is wrong.
    """
    usual = ModelSettings()
    known = [item.name for item in fields(ModelSettings)]
    values: dict[str, Any] = {}
    for key, text in given.items():
        if key in _OF_TRITON:
            continue
        if key not in known:
            raise RequestError(f"config.pbtxt has a parameter {key!r} that is not known; the model takes {', '.join(known)}")
        values[key] = _read(key, text, getattr(usual, key))
    return ModelSettings(**values)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(key: str, text: str, usual: object) -> object:
    """As the type of the default says."""
    if isinstance(usual, str):
        return text
    if isinstance(usual, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(usual, bool):
        if text.lower() not in _WORDS:
            raise RequestError(f"parameter {key} of config.pbtxt is true or false, not {text!r}; correct it")
        return _WORDS[text.lower()]
    if key in ("feature_cache", "max_picture"):
        return read_size(f"parameter {key} of config.pbtxt", text)
    try:
        return float(text) if isinstance(usual, float) else int(text)
    except ValueError:
        raise RequestError(f"parameter {key} of config.pbtxt is a number, not {text!r}; correct it") from None
