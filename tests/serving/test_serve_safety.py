"""Who may ask, and how much; what becomes of requests when all come at once."""

import asyncio
import contextlib
import json
import socket
import time

import pytest
from serving_helpers import CHAT, ENDLESS, SHORT, Server, read_all, request

# ---- who may ask


@pytest.fixture(scope="module")
def locked(folder):
    """With a key, one worker, little patience, and pages of one other site."""
    flags = ("--workers", "1", "--queue", "1", "--timeout", "5s", "--max-body", "1kB")
    origin = ("--allow-origin", "https://mine.example")
    with Server(folder, *flags, *origin, "--max-new-tokens", "1000000", key="sK") as s:
        yield s


RIGHT = {"authorization": "Bearer sK"}


def test_the_key(locked):
    for headers in (
        {},
        {"authorization": "Bearer s"},
        {"authorization": "Bearer sKK"},
        {"authorization": "bearer sK "},
        {"authorization": "sK"},
        {"authorization": "Basic sK"},
        {"authorization": "Bearer \xff"},
    ):
        for path, body in ((CHAT, SHORT), ("/v1/models", None), ("/v1/models/tiny", None)):
            status, error = locked.refused(path, body, **headers)
            assert (status, error["type"]) == (401, "authentication_error")
    assert locked.refused("/v1/nothing")[0] == 401
    assert locked.ask("/v1/models", **RIGHT)[0] == 200
    assert locked.ask(CHAT, SHORT, **RIGHT)[0] == 200
    assert locked.ask("/health")[0] == 200
    assert locked.ask("/")[0] == 200
    described = json.loads(locked.ask("/openapi.json")[2])
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert "sK" not in json.dumps(described) + "".join(locked.printed)


def test_names_that_point_here_by_a_trick(server):
    for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example", ""):
        assert server.refused("/health", host=host)[0] == 403
        assert server.refused(CHAT, SHORT, host=host)[0] == 403
    for host in ("localhost", f"LOCALHOST:{server.port}", "[::1]:80", "127.0.0.1"):
        assert server.ask("/health", host=host)[0] == 200


def test_pages_of_other_sites(server, locked):
    own = f"http://localhost:{server.port}"
    for origin in ("http://evil.example", "null", "http://localhost:1", "", own + ".evil.example"):
        assert server.refused(CHAT, SHORT, origin=origin, host=own[7:])[0] == 403
    status, headers, _ = server.ask(CHAT, SHORT, origin=own, host=own[7:])
    assert status == 200
    assert not any(name.startswith("access-control") for name in headers)
    _, headers, _ = server.ask("/health", method="OPTIONS", origin="http://evil.example")
    assert not any(name.startswith("access-control") for name in headers)
    mine = {"origin": "https://mine.example"}
    status, headers, _ = locked.ask(CHAT, SHORT, **RIGHT, **mine)
    assert (status, headers["access-control-allow-origin"]) == (200, mine["origin"])
    preflight = {"access_control_request_method": "POST", **mine}
    assert locked.ask(CHAT, method="OPTIONS", **preflight)[0] == 200


def test_headers(server):
    for path in ("/", "/page/chat.js", "/health", "/v1/nothing"):
        headers = server.ask(path)[1]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    tag = server.ask("/")[1]["etag"]
    assert server.ask("/", if_none_match=tag)[0] == 304


def test_a_server_for_others_warns(public, server):
    assert public.ask("/health", host="any.example")[0] == 200
    assert "--api-key" in public.errors
    assert "--api-key" not in server.errors


# ---- how much


def test_bodies_are_bounded(locked, server):
    assert locked.refused(CHAT, b" " * 1001, **RIGHT)[0] == 413
    with socket.create_connection(("127.0.0.1", server.port), 10) as opened:
        # The length is not said before.
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        opened.sendall(
            head + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(40):
                opened.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert b" 413 " in opened.recv(100)
    with socket.create_connection(("127.0.0.1", server.port), 10) as opened:
        with contextlib.suppress(OSError):
            opened.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000)
        assert b" 400 " in opened.recv(100)
    server.until(0)


def test_a_full_queue_refuses_and_the_time_of_a_reply_is_bounded(locked):
    headers = b"Authorization: Bearer sK\r\nContent-Type"
    with contextlib.ExitStack() as stack:
        begun = time.monotonic()
        opened = []
        for waiting in range(2):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", locked.port), 30))
            one.sendall(request(ENDLESS).replace(b"Content-Type", headers))
            opened.append(one)
            locked.until(1, waiting)
        status, found, body = locked.ask(CHAT, SHORT, **RIGHT)
        assert status == 503
        assert int(found["retry-after"]) > 0
        assert json.loads(body)["error"]["code"] == "busy"
        assert locked.ask("/health")[0] == 200
        for one in opened:
            text = read_all(one).decode()
            assert "the reply was ended after 5 seconds" in text
            assert "[DONE]" in text
        assert 9 < time.monotonic() - begun < 60
    locked.until(0)


async def _one(port: int, body: bytes, accepted: list[int]) -> str:
    """Ask until there is an answer; a refusal must be in due form."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            answer = json.loads(await reader.readexactly(length))
        finally:
            writer.close()
        status = int(head.split()[1])
        accepted.append(status)
        if status == 200:
            return answer["choices"][0]["message"]["content"]
        assert status == 503
        assert answer["error"]["code"] == "busy"
        assert b"retry-after" in head.lower()
        await asyncio.sleep(1)


def test_a_thousand_requests_at_once(public):
    async def all_of_them() -> list[str]:
        body = request(SHORT)
        return await asyncio.gather(*(_one(public.port, body, statuses) for _ in range(1000)))

    statuses: list[int] = []
    public.ask(CHAT, SHORT)
    before = public.memory("VmRSS")
    replies = asyncio.run(all_of_them())
    assert len(replies) == 1000
    assert len(set(replies)) == 1
    assert statuses.count(200) == 1000
    assert 503 in statuses
    assert public.memory() - before < 150e6
    public.until(0)
    assert public.errors.count("\n") == 1  # the warning


# ---- before it starts


def test_mistakes_are_one_line(folder, tmp_path, monkeypatch, capsys):
    from i3lm.__main__ import main

    def refused(*arguments) -> str:
        assert main(["serve", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refused(folder, "--port", taken.getsockname()[1])
    assert "no folder" in refused(tmp_path / "absent", "--port", 0)
    assert "--host" in refused(folder, "--host", "256.1.1.1", "--port", 0)
    assert "key" in refused(folder, "--api-key", "")
    assert "key" in refused(folder, "--api-key", "schlüssel")
    assert "10m" in refused(folder, "--timeout", "long")
    assert "400MB" in refused(folder, "--max-body", "much")
    assert "65535" in refused(folder, "--port", 65536)
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    assert "pip install 'i3lm[serve]'" in refused(folder)
