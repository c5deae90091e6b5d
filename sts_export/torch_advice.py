"""transformers advises to install PyTorch whenever it is imported without it; running without it is the point here."""

from __future__ import annotations

import logging


def hide_torch_advice() -> None:
    """Call it before the first import of transformers; calling it again changes nothing."""
    logging.getLogger("transformers").addFilter(_is_other_advice)


def _is_other_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in str(record.msg)
