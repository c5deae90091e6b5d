"""Names of a model: as Triton, shells and containers take it, and as Kubernetes does."""

from __future__ import annotations

import re

from sts_export.errors import RequestError

_MOST = 100  # characters
_MODEL = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_MOST - 1}}}")
_MOST_OF_LABEL = 40  # of 63 that a DNS label has: objects have suffixes, and pods more of them
ENCODER = "-encoder"
# Files beside the models.
_FILES = re.compile(
    r"readme\.md|run-server|containerfile|entrypoint|compose\.yaml|kubernetes\.yaml|kernels\.tar\.gz|.*\.whl", re.IGNORECASE
)


def check_model_name(name: str) -> None:
    """A name that needs no quotes anywhere: a folder, a part of a URL, a word of a shell.

    Raises:
        RequestError: it is none.
    """
    if _MODEL.fullmatch(name) is None:
        shown = repr(name if len(name) <= 80 else name[:77] + "...")
        raise RequestError(
            f"a model cannot be called {shown}: up to {_MOST} letters, digits, '.', '_' and '-', the first a letter or a "
            "digit; choose another --model-name"
        )
    if _FILES.fullmatch(name) is not None:
        raise RequestError(f"a model cannot be called {name!r}, as a file of the repository is; choose another --model-name")


def dns_label(name: str) -> str:
    """A name for images and objects of Kubernetes: RFC 1035 label, lower case, which services need to begin with a letter.

    Args:
        name: one that ``check_model_name`` takes.
    """
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label[0].isalpha():
        label = f"model-{label}"
    return label[:_MOST_OF_LABEL].rstrip("-")
