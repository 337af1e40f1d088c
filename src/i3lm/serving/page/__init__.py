"""The chat page: plain files, without a build step, that ask nobody else for anything."""

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "chat.js": "text/javascript",
    "server.js": "text/javascript",
    "store.js": "text/javascript",
    "view.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
Give = Callable[[Request], Awaitable[Response]]


def routes() -> dict[str, Give]:
    """Return what answers at each path: the page at /, what belongs to it below /page/."""
    folder = resources.files(__name__)
    return {
        "/" if name == "index.html" else f"/page/{name}": _file((folder / name).read_bytes(), kind)
        for name, kind in TYPES.items()
    }


def _file(data: bytes, kind: str) -> Give:
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=kind)

    return give
