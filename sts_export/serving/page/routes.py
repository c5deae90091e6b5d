"""Addresses of the page: ``/``, its files, and what it has to know of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from sts_export.bundle.manifest import Manifest
from sts_export.errors import BudgetError
from sts_export.pruning.per_request import for_request
from sts_export.serving.page.files import CONTENT_SECURITY_POLICY, page_file
from sts_export.serving.problems import LOADING, Problem, ProblemError
from sts_export.serving.service import Service

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_STEPS = 4  # of the slider
_MOST_EXAMPLES = 12


def add_page(app: FastAPI, service: Service) -> None:
    """Let an application show the page.  It needs no API key: the page sends the user's."""
    examples = _examples(service.settings.examples)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file("index.html")

    @app.get("/page/info", include_in_schema=False)
    async def info() -> dict[str, Any]:
        if service.engine is None:
            raise ProblemError(LOADING)
        manifest = service.engine.pipeline.manifest
        return {
            "model": service.settings.model,
            "key": bool(service.settings.api_keys),
            "budget": manifest.pruning.budget,
            "budgets": offered_budgets(manifest),
            "unpruned": keeps_all(manifest),
            "max_pictures": most_pictures(manifest),
            "examples": [{"name": name, "src": f"page/examples/{name}"} for name in examples],
        }

    @app.get("/page/examples/{name}", include_in_schema=False)
    async def example(name: str) -> Response:
        if name not in examples:
            raise ProblemError(Problem(404, "there is no such example; see /page/info"))
        return Response(examples[name].read_bytes(), media_type="image/png", headers=_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return _file(name)


def offered_budgets(manifest: Manifest) -> list[str]:
    """The export's budget, its half, quarter and eighth, ascending, as far as they can be met; none where it is no budget."""
    exported = manifest.pruning.budget
    if exported is None:
        return []
    number, percent = (exported[:-1], "%") if exported.endswith("%") else (exported, "")
    budgets = [exported]
    for step in range(1, _STEPS):
        budget = f"{float(number) / 2**step:g}{percent}"
        try:
            for_request(manifest.pruning, budget, None)
        except BudgetError:
            break
        budgets.append(budget)
    return budgets[::-1]


def keeps_all(manifest: Manifest) -> bool:
    """Whether the export's budget, the largest that a request may have, is all visual tokens."""
    largest = manifest.model.max_image_tokens
    return all(keep >= largest for keep in manifest.pruning.keeps(largest))


def most_pictures(manifest: Manifest) -> int:
    """How many pictures, of the largest, fit into the caches at the export's budget, with half of the room for text left.

    Pictures whose tokens were dropped take the rows of those that were kept only.
    """
    model, pruning, room = manifest.model, manifest.pruning, manifest.capacities
    largest, newlines = model.max_image_tokens, model.max_image_newlines
    text = (room.prompt_tokens + room.new_tokens) // 2
    fits = [(rows - text) // (keep + newlines) for rows, keep in zip(room.rows, pruning.keeps(largest), strict=True)]
    # Under M-RoPE a picture moves what follows by its longer side only.
    if model.unpruned_positions(pruning) and not model.decoder.mrope_section:
        fits.append((room.positions - text) // (largest + newlines))
    return max(1, min(fits))


def _examples(folder: Path | None) -> dict[str, Path]:
    found = [] if folder is None else sorted(folder.glob("*.png"))[:_MOST_EXAMPLES]
    return {file.name: file for file in found}


def _file(name: str) -> Response:
    found = page_file(name)
    if found is None:
        raise ProblemError(Problem(404, "there is nothing at this address; see /openapi.json"))
    content, media_type = found
    return Response(content, media_type=media_type, headers=_HEADERS)
