"""The server's addresses."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from sts_export import __version__
from sts_export.errors import RequestError, StsExportError
from sts_export.generation.scheduling.answers import Finished
from sts_export.requests.request import Request as Prepared
from sts_export.serving.api.bodies import Body, read_body
from sts_export.serving.api.chat import PictureReader, chat_request, completion_request, read_pictures
from sts_export.serving.api.description import OF_EVERY_ADDRESS, describe, described
from sts_export.serving.api.events import EventStream
from sts_export.serving.api.gone import unless_gone
from sts_export.serving.api.heads import Heads
from sts_export.serving.api.origins import Origins
from sts_export.serving.api.protocol import ChatRequest, CompletionRequest, Generated
from sts_export.serving.api.replies import ChatForm, Form, TextForm
from sts_export.serving.api.running import Running
from sts_export.serving.logs import Requests
from sts_export.serving.metrics import Metrics
from sts_export.serving.page.routes import add_page
from sts_export.serving.problems import BROKEN, GONE, Problem, ProblemError, problem_of
from sts_export.serving.service import Engine, Service

Awaited = TypeVar("Awaited")


def create_app(service: Service, picture: PictureReader) -> FastAPI:
    """An application that answers with a service's engine, which stays the caller's.

    Args:
        picture: URL of a picture -> bytes of its file.
    """
    settings, metrics = service.settings, Metrics(service)
    # Decoding a picture takes memory: not more of them at a time than there are processors.
    limiter = CapacityLimiter(os.cpu_count() or 1)
    # Their hosts may be slow, which is nothing that other requests should wait for.
    fetching = CapacityLimiter(settings.most_admitted)
    app = FastAPI(
        title="sts-export",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={**OF_EVERY_ADDRESS},
    )
    app.add_middleware(Origins, rules=settings.hosts)
    app.add_middleware(Requests, metrics=metrics)
    app.add_middleware(Heads)
    _answer_problems(app)
    describe(app)

    async def answered(
        request: Request,
        kind: type[Body],
        prepare: Callable[[Engine, Body, Sequence[bytes]], Prepared],
        form_of: Callable[[Engine, Body, Prepared], Form],
    ) -> Response:
        _check_key(request, settings.api_keys)
        with ExitStack() as stay:
            engine = stay.enter_context(service.admitted())
            body = await read_body(request, kind, settings.most_body, settings.most_silence)
            if body.model != settings.model:
                what = f"there is no model {body.model[:80]!r} here; ask for {settings.model!r}"
                raise ProblemError(Problem(404, what, "model", "model_not_found"))
            if settings.log_prompts:
                request.state.fields["prompt"] = body.said
            engine.scheduler.check_room()  # before pictures are decoded for nothing
            files: Sequence[bytes] = ()
            with _named_as_in(body):
                if body.pictures:
                    given = engine.pipeline, body.pictures, _while_wanted(picture), settings.most_body
                    files = await unless_gone(request, to_thread.run_sync(read_pictures, *given, limiter=fetching))
                prepared = await unless_gone(request, to_thread.run_sync(prepare, engine, body, files, limiter=limiter))
            form = form_of(engine, body, prepared)
            asked = form.watched if body.stream else prepared
            running = Running(engine.scheduler, asked, metrics, request.state.arrived)
            if body.stream:
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                ended = partial(log_end, request, prepared)
                return await _streamed(request, running, form, stay, with_usage=with_usage, ended=ended)
            try:
                end = await _answer_of(request, running, running.finished())
            finally:
                running.cancel()
            log_end(request, prepared, end)
            return JSONResponse(form.whole(end.result))

    def prepared_chat(engine: Engine, body: ChatRequest, files: Sequence[bytes]) -> Prepared:
        return chat_request(engine.pipeline, body, files)

    def prepared_text(engine: Engine, body: CompletionRequest, _: Sequence[bytes]) -> Prepared:
        return completion_request(engine.pipeline, body)

    def chat_form(engine: Engine, body: ChatRequest, prepared: Prepared) -> Form:
        tokens = engine.pipeline.tokenizer.token_bytes
        return ChatForm(settings.model, prepared, tokens, with_kept=body.return_kept)

    def text_form(engine: Engine, body: CompletionRequest, prepared: Prepared) -> Form:
        return TextForm(settings.model, prepared, engine.pipeline.tokenizer.token_bytes)

    @app.post("/v1/chat/completions", **described(ChatRequest))
    async def chat(request: Request) -> Response:
        return await answered(request, ChatRequest, prepared_chat, chat_form)

    @app.post("/v1/completions", **described(CompletionRequest))
    async def complete(request: Request) -> Response:
        return await answered(request, CompletionRequest, prepared_text, text_form)

    @app.get("/v1/models", **described())
    async def models(request: Request) -> dict[str, Any]:
        _check_key(request, settings.api_keys)
        return {"object": "list", "data": [_model(settings.model)]}

    @app.get("/v1/models/{name:path}", **described())
    async def model(request: Request, name: str) -> dict[str, Any]:
        _check_key(request, settings.api_keys)
        if name != settings.model:
            what = f"there is no model {name[:80]!r} here; ask for {settings.model!r}"
            raise ProblemError(Problem(404, what, "model", "model_not_found"))
        return _model(settings.model)

    @app.get("/health", responses={503: {"description": "The engine has failed: start the server again"}})
    async def health() -> dict[str, str]:
        if service.broken:
            raise ProblemError(BROKEN)
        return {"status": "alive"}

    @app.get("/health/ready", responses={503: {"description": "The model is being loaded, or the server shuts down"}})
    async def ready() -> JSONResponse:
        return JSONResponse({"status": "ready" if service.ready else "not ready"}, 200 if service.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def measured() -> Response:
        return Response(metrics.text(), media_type=metrics.media_type)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    add_page(app, service)
    return app


async def _streamed(
    request: Request,
    running: Running,
    form: Form,
    stay: ExitStack,
    *,
    with_usage: bool,
    ended: Callable[[Finished | Problem], None],
) -> Response:
    """What fails before the first token is an error with a status of its own, and no stream.  The stay goes on with it."""
    try:
        first = await _answer_of(request, running, running.next())
    except BaseException:
        running.cancel()
        raise
    going_on = stay.pop_all()

    def leave() -> None:
        if not _has_end(request):
            log_cancelled(request, running)
        going_on.close()

    return EventStream(running, first, form, with_usage=with_usage, ended=ended, leave=leave)


async def _answer_of(request: Request, running: Running, work: Coroutine[Any, Any, Awaited]) -> Awaited:
    """What the work gives, or a line that says that the client went away."""
    try:
        return await unless_gone(request, work)
    except ProblemError as error:
        if error.problem is GONE:
            log_cancelled(request, running)
        raise


@contextmanager
def _named_as_in(body: Generated) -> Iterator[None]:
    """What is wrong is told with the names of the body's fields."""
    try:
        yield
    except RequestError as error:
        raise ProblemError(problem_of(error, body.name_of)) from None


def _while_wanted(picture: PictureReader) -> PictureReader:
    """The next picture of a request is not fetched for a client who has left."""

    def read(url: str) -> bytes:
        from_thread.check_cancelled()
        return picture(url)

    return read


def log_end(request: Request, prepared: Prepared, end: Finished | Problem) -> None:
    """What the line of a request says of its answer; the result's times do not count what was before its preparing."""
    if isinstance(end, Problem):
        request.state.fields["error"] = end.message
        return
    before_ms = (prepared.started - request.state.arrived) * 1e3
    result = end.result
    visual = result.visual_tokens
    request.state.fields.update(
        finish_reason=result.finish_reason,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=len(result.token_ids),
        visual_tokens=[visual.total, visual.stage1, visual.stage2],
        queue_ms=round(end.queue_ms, 1),
        first_token_ms=round(before_ms + result.timings_ms.first_token, 1),
    )


def log_cancelled(request: Request, running: Running) -> None:
    """What the line of a request says whose client went away: how much was made for it by then."""
    request.state.fields.update(finish_reason="cancelled", completion_tokens=running.tokens)


def _has_end(request: Request) -> bool:
    return bool({"finish_reason", "error"} & request.state.fields.keys())


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "sts-export"}


def _check_key(request: Request, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    found = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]  # all of them, whichever it is
    if kind.lower() != "bearer" or not any(found):
        message = "the API key is missing or wrong; send Authorization: Bearer KEY"
        raise ProblemError(Problem(401, message, code="invalid_api_key"))


def _answer_problems(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        return _response(request, error.problem)

    @app.exception_handler(StsExportError)
    async def failed(request: Request, error: StsExportError) -> Response:
        return _response(request, problem_of(error))

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        what = {
            404: "there is nothing at this address; see /openapi.json",
            405: f"this address does not take {request.method}; see /openapi.json",
        }
        headers = dict(error.headers or {})
        if "GET" in (allowed := set(filter(None, headers.get("Allow", "").split(", ")))):
            headers["Allow"] = ", ".join(sorted(allowed | {"HEAD"}))  # which Heads answers, and not all routes know of
        return _response(request, Problem(error.status_code, what.get(error.status_code, error.detail)), headers)


def _response(request: Request, problem: Problem, headers: Any = None) -> Response:
    request.state.fields["error"] = problem.message
    own = {"Retry-After": "1"} if problem.status in (429, 503) else {}
    if problem.status == 401:
        own["WWW-Authenticate"] = "Bearer"
    if problem.status in (408, 413):
        own["Connection"] = "close"  # the rest of the body may still be on its way
    return JSONResponse(problem.body, problem.status, {**(headers or {}), **own})
