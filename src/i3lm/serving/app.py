"""The routes: OpenAI's chat and completions, models, health, and the chat page.

FastAPI rather than Starlette alone: the OpenAPI description is then made of what checks the bodies.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from i3lm import __version__
from i3lm.errors import UserError
from i3lm.serving import page, schema
from i3lm.serving.engine import Busy, Engine, Job, Wanted
from i3lm.serving.guard import Guard, error_response

T = TypeVar("T")
log = logging.getLogger("uvicorn.error")
UNSUPPORTED = {
    *("n", "tools", "functions", "logprobs", "response_format", "logit_bias", "echo", "best_of"),
    *("suffix", "frequency_penalty", "presence_penalty"),
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schema.Error, "description": "The request cannot be answered."},
    "5XX": {"model": schema.Error, "description": "Not now: the queue is full."},
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The reply, whole or as server-sent events that end with [DONE].",
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "type": "object",
                    "properties": {"data": {"type": "string"}},
                    "required": ["data"],
                }
            }
        },
    }
}


@dataclass(frozen=True)
class Served:
    """The model as it is shown to clients, and the server's limits."""

    id: str
    facts: dict[str, Any]  # parameters, context_window, what the card says
    max_new_tokens: int
    max_body: int  # bytes
    key: str | None = None
    hosts: Collection[str] = ()  # names that this server answers to; none: any
    origins: Collection[str] = ()


class _NoModel(HTTPException):
    """A client asks for a model that is not here."""


def build_app(engine: Engine, served: Served) -> ASGIApp:
    """Return the ASGI application that serves `engine`."""
    app = FastAPI(
        title="i3lm serve",
        version=__version__,
        description="A small language model of your own, in the form of OpenAI's API.",
        docs_url=None,  # these pages would load scripts of other sites
        redoc_url=None,
    )
    app.include_router(_routes(engine, served))
    for path, give in page.routes().items():
        app.add_route(path, give, include_in_schema=False)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(Exception, _defect)
    guarded: ASGIApp = Guard(
        app, key=served.key, hosts=served.hosts, origins=served.origins, max_body=served.max_body
    )
    if served.origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(served.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return guarded


def _routes(engine: Engine, served: Served) -> APIRouter:
    router = APIRouter(responses=ERRORS)
    secured = [Security(HTTPBearer(auto_error=False))] if served.key else []  # Guard checks it
    began = int(time.time())
    entry = {"id": served.id, "object": "model", "created": began, "owned_by": "i3lm"}
    usual = min(schema.DEFAULT_TOKENS, served.max_new_tokens)
    entry |= {"max_new_tokens": served.max_new_tokens, "default_max_tokens": usual}
    entry |= {"default_temperature": schema.TEMPERATURE, **served.facts}

    @router.get("/health", response_model=schema.Health)
    async def health() -> Response:
        """Say that the server works, and how much it has to do."""
        running, waiting = engine.load
        status = "stopping" if engine.stopping else "ok"
        return JSONResponse({"status": status, "running": running, "waiting": waiting})

    @router.get("/v1/models", response_model=schema.Models, dependencies=secured)
    async def models() -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [entry]})

    @router.get("/v1/models/{model}", response_model=schema.Model, dependencies=secured)
    async def model(model: str) -> Response:
        """Describe the model."""
        _check_model(model)
        return JSONResponse(entry)

    @router.post(
        "/v1/chat/completions",
        response_model=schema.ChatAnswer,
        responses=STREAMED,
        dependencies=secured,
    )
    async def chat(asked: schema.ChatAsked, request: Request) -> Response:
        """Reply to a conversation."""
        return await answer(asked, request, [message.plain() for message in asked.messages])

    @router.post(
        "/v1/completions",
        response_model=schema.CompletionAnswer,
        responses=STREAMED,
        dependencies=secured,
    )
    async def completions(asked: schema.CompletionAsked, request: Request) -> Response:
        """Continue a text."""
        return await answer(asked, request, None, asked.text)

    async def answer(
        asked: schema.Asked, request: Request, messages: list | None, prompt: str = ""
    ) -> Response:
        _check_model(asked.model)
        limit, length = served.max_new_tokens, asked.tokens or usual
        wanted = Wanted(prompt, messages, min(length, limit), asked.stops, asked.sampling)
        job = engine.submit(wanted)
        if length > limit:
            job.reply.notices.append(f"this server gives at most {limit:,} tokens a reply")
        form = _Form(served.id, messages is not None)
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        if asked.stream:
            first = await _unless_gone(request, job, anext(job, ""))
            return _Stream(job, _events(form, job, first, usage))
        text = await _unless_gone(request, job, _joined(job))
        return JSONResponse(form.whole(job, text))

    def _check_model(name: str | None) -> None:
        if name not in (None, served.id):
            raise _NoModel(404, f"no such model; this server has {served.id!r}")

    return router


async def _joined(job: Job) -> str:
    return "".join([piece async for piece in job])


async def _unless_gone(request: Request, job: Job, work: Awaitable[T]) -> T:
    """Return what `work` gives; where the client goes first, end the job."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, going = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((doing, going), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise HTTPException(400, "the client has gone")  # nobody reads it
        return doing.result()
    finally:
        if not doing.done() or doing.cancelled() or doing.exception():
            job.cancel()
        doing.cancel()
        going.cancel()


class _Form:
    """Puts text into the form of a chat or of a completion."""

    def __init__(self, model: str, chat: bool) -> None:
        self.chat = chat
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, job: Job, text: str) -> dict[str, Any]:
        """Return an answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": job.reply.finish_reason}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice |= {"text": text, "logprobs": None}
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            **self.head,
            "object": kind,
            "choices": [choice],
            "usage": usage_of(job),
            **notices_of(job),
        }

    def piece(
        self, delta: dict[str, str], finish: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """Return a piece of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return self.shell([choice], **more)

    def shell(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a piece with these choices."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, **more}


def usage_of(job: Job) -> dict[str, int]:
    """Return the token counts of a reply that has ended."""
    read, written = job.reply.prompt_tokens, job.reply.tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def notices_of(job: Job) -> dict[str, Any]:
    """Return our own fields of an answer."""
    return {"notices": job.reply.notices, "forgotten_messages": job.reply.forgotten}


async def _events(form: _Form, job: Job, first: str, usage: bool) -> AsyncIterator[str]:
    if form.chat:
        yield _event(form.piece({"role": "assistant", "content": ""}))
    try:
        if first:
            yield _event(form.piece({"content": first}))
            async for piece in job:
                yield _event(form.piece({"content": piece}))
    except Exception as error:
        log.exception("a reply broke off")
        why = str(error) if isinstance(error, UserError) else "the server's log says why"
        response = error_response(500, f"the reply broke off: {why}")
        yield f"data: {bytes(response.body).decode()}\n\n"
        return
    yield _event(form.piece({}, job.reply.finish_reason, **notices_of(job)))
    if usage:
        yield _event(form.shell([], usage=usage_of(job)))
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


class _Stream(StreamingResponse):
    """Server-sent events; the job ends where its client leaves."""

    def __init__(self, job: Job, events: AsyncIterator[str]) -> None:
        headers = {"x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_look(message: Message) -> None:
            # Where pieces lie ready, nothing else would let the loop run: it could not notice
            # that the connection is lost, and all of them would be written to it.
            await send(message)
            await asyncio.sleep(0)

        try:
            await super().__call__(scope, receive, send_and_look)
        finally:
            self._job.cancel()


async def _invalid(_: Request, error: Exception) -> Response:
    """Say what is wrong with a body, without repeating it: it may be anything."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    names = [str(part) for part in first["loc"][1:]]
    field = names[0] if names else None
    if first["type"] == "json_invalid":
        return error_response(400, "the body is not JSON", code="invalid_json")
    if field in UNSUPPORTED:
        return error_response(
            400, f"{field} is not supported; leave it out", param=field, code="unsupported"
        )
    message = f"{'.'.join(names) or 'the body'}: {first['msg']}"
    return error_response(400, message, param=field, code="invalid_value")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "model_not_found" if isinstance(error, _NoModel) else None
    response = error_response(error.status_code, error.detail, code=code)
    response.headers.update(error.headers or {})
    return response


async def _user_error(_: Request, error: Exception) -> Response:
    return error_response(400, str(error))


async def _busy(_: Request, error: Exception) -> Response:
    return error_response(503, f"{error}; ask again", code="busy")


async def _defect(_: Request, error: Exception) -> Response:
    return error_response(500, "a defect of the server; its log says more")
