"""What every request passes first: who may ask, from where, how much."""

import asyncio
import hmac
import json
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER = "1"  # seconds
BODY_SECONDS = 30.0  # for a whole body to come
BODIES = 64 << 20  # bytes of all bodies that are held at once
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    """Return an error in OpenAI's form."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    headers = {"retry-after": RETRY_AFTER} if status == 503 else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(json.dumps(body), status, headers, "application/json")


class Guard:
    """ASGI middleware: checks Host, Origin, key and body; sets headers.

    `hosts`: names that the header Host may have, none for any. A page of another site cannot reach
    a server on this computer, neither by its own requests (Origin) nor by a name of its own that
    it lets point here (Host). `origins` are trusted all the same. Under /v1/ the key is wanted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: Collection[str],
        origins: Collection[str],
        max_body: int,
    ) -> None:
        self._app, self._hosts, self._origins, self._max_body = app, hosts, origins, max_body
        self._key = None if key is None else b"Bearer " + key.encode()
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return
        body = _Body(receive, self)

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            await self._app(scope, body.receive, headed)
        except HTTPException as refused:
            await error_response(refused.status_code, refused.detail)(scope, receive, headed)
        finally:
            self._held -= body.size

    def _check(self, scope: Scope, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts and _name(host) not in self._hosts:
            raise HTTPException(
                403, f"this server answers as {' or '.join(sorted(self._hosts))} only"
            )
        own = origin is None or origin.partition("://")[2].lower() == host.lower()
        if not own and origin not in self._origins:
            raise HTTPException(403, "pages of other sites may not ask; see --allow-origin")
        if not scope["path"].startswith("/v1/"):
            return
        if self._key is not None:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._key):
                raise HTTPException(
                    401, "the API key is missing or wrong; send Authorization: Bearer KEY"
                )
        kind = headers.get("content-type", "").partition(";")[0].strip()
        asks = scope["method"] == "POST" and scope["path"].endswith("/completions")
        if asks and kind != "application/json":
            raise HTTPException(415, "the body must be JSON; send Content-Type: application/json")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_body:
            raise self.too_large()

    def too_large(self) -> HTTPException:
        """Return the refusal of a body that is too long."""
        return HTTPException(413, f"the body is longer than {self._max_body:,} bytes")

    def hold(self, size: int, whole: int) -> None:
        """Account for `size` more bytes of a body, which has `whole` with them."""
        self._held += size
        if whole > self._max_body:
            raise self.too_large()
        if self._held > BODIES:
            raise HTTPException(503, "too many long requests at once; ask again")


class _Body:
    """A request's body: bounded in size and time."""

    def __init__(self, receive: Receive, guard: Guard) -> None:
        self._receive, self._guard, self._whole, self.size = receive, guard, False, 0
        self._end = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not come within {BODY_SECONDS:g} seconds"
            ) from None
        size = len(message.get("body", b""))
        self.size += size
        self._whole = not message.get("more_body", False)
        self._guard.hold(size, self.size)
        return message


def _name(host: str) -> str:
    """Return a Host header without its port, in small letters."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
