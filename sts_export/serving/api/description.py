"""The server's own OpenAPI description, at /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from sts_export.serving.api.protocol import ChatRequest, CompletionRequest, Generated

_SCHEMAS = "#/components/schemas/"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
OF_EVERY_ADDRESS: dict[int | str, dict[str, Any]] = {
    400: {
        "description": "The Host is none of this server",
        "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}},
    }
}
_OF_ALL = {401: "No API key, or a wrong one"}
_OF_MODELS = {404: "No such model"}
_OF_ANSWERS = {
    400: "The body is wrong, or asks for what cannot be had",
    403: "A page of another site sent it",
    404: "No such model",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is of another type than application/json",
    429: "As many requests wait as may; send it again later",
    500: "The engine failed",
    503: "The model is being loaded, the server shuts down, or it has to be started again",
}


def described(body: type[Generated] | None = None) -> dict[str, Any]:
    """What FastAPI is told of a route: its body, which is read elsewhere, and its errors."""
    errors = _OF_ALL | (_OF_MODELS if body is None else _OF_ANSWERS)
    content = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Error"}}}
    responses: dict[int, dict[str, Any]] = {
        status: {"description": text, "content": content} for status, text in errors.items()
    }
    route: dict[str, Any] = {"responses": responses}
    if body is not None:
        schema = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{body.__name__}"}}}
        route["openapi_extra"] = {"requestBody": {"required": True, "content": schema}}
        # The whole answer, or its chunks as server-sent events.
        answer = {"schema": _answer("message" if body is ChatRequest else "text")}
        responses[200] = {"description": "The answer", "content": {"application/json": answer, "text/event-stream": {}}}
    return route


def _answer(said: str) -> dict[str, Any]:
    """Schema of a whole answer, whose choices have what was said under that name."""
    choice = {
        "type": "object",
        "required": ["index", said, "logprobs", "finish_reason"],
        "properties": {"index": {"const": 0}, "finish_reason": {"enum": ["stop", "length"]}},
    }
    counts = {name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "chat.completion" if said == "message" else "text_completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice, "minItems": 1, "maxItems": 1},
            "usage": {"type": "object", "required": list(counts), "properties": counts},
        },
    }


def describe(app: FastAPI) -> None:
    """Let an application's description name the schemas that :func:`described` refers to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            models = [(model, "validation") for model in (ChatRequest, CompletionRequest)]
            _, definitions = models_json_schema(models, ref_template=_SCHEMAS + "{model}")  # type: ignore[arg-type]
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"], Error=_ERROR)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way: docs, "Extending OpenAPI"
