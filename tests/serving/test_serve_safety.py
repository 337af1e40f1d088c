"""Who may ask, how much, how slowly; what becomes of requests when all come at once or we stop."""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import time

import pytest
from serving_helpers import HELLO, Server, events, request

from i3lm.serving.engine import Job, Wanted

CHAT = "/v1/chat/completions"
SHORT = {"messages": HELLO, "max_tokens": 4, "seed": 1}
ENDLESS = {"messages": HELLO, "max_tokens": 1_000_000, "stream": True}


@contextlib.contextmanager
def connection(server, body, path=CHAT, buffer=None):
    """A socket on which a request was sent."""
    with socket.socket() as opened:
        if buffer:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        opened.settimeout(30)
        opened.connect(("127.0.0.1", server.port))
        opened.sendall(request(body, path))
        yield opened


def read_all(opened) -> bytes:
    found = bytearray()
    while part := opened.recv(1 << 20):
        found += part
        if found.endswith(b"0\r\n\r\n"):
            break
    return bytes(found)


# ---- who may ask


@pytest.fixture(scope="module")
def locked(folder):
    """With a key, one worker, little patience, and pages of one other site."""
    flags = ("--workers", "1", "--queue", "1", "--timeout", "2s", "--max-body", "1kB")
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


@pytest.fixture(scope="module")
def public(folder):
    """For everyone on the network; one test ends it."""
    with Server(
        folder, "--host", "0.0.0.0", "--queue", "250", "--max-new-tokens", "1000000"
    ) as running:
        yield running


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
            assert "the reply was ended after 2 seconds" in text
            assert "[DONE]" in text
        assert 3.5 < time.monotonic() - begun < 20
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


# ---- how slowly


def test_a_client_that_leaves_ends_its_reply(server):
    for body in (ENDLESS, {**ENDLESS, "stream": False}):
        with connection(server, body):
            server.until(1)
        server.until(0)
    with contextlib.ExitStack() as stack:  # also one that waits
        for running, waiting in ((1, 0), (2, 0), (2, 1)):
            last = stack.enter_context(connection(server, ENDLESS))
            server.until(running, waiting)
        last.close()
        server.until(2)
    server.until(0)


def test_a_socket_that_is_half_closed(server):
    with connection(server, ENDLESS) as opened:
        server.until(1)
        opened.shutdown(socket.SHUT_WR)
        server.until(0)
    assert server.ask(CHAT, SHORT)[0] == 200


class _AllAtOnce:
    """An engine whose reply begins, and lies there whole just when its client goes."""

    load, stopping = (0, 0), False

    def submit(self, wanted: Wanted) -> Job:
        self.job = Job(wanted)
        self.give(100)  # more than the connection takes at once
        return self.job

    def give(self, pieces: int) -> None:
        for _ in range(pieces):
            self.job.put(" cat")


@pytest.mark.parametrize("leaves", ["resets", "says no more"])
def test_nothing_is_written_to_a_client_that_has_gone(leaves, caplog, monkeypatch):
    """asyncio warns of each write, from the fifth on, to a connection that is lost."""
    import uvicorn

    from i3lm.serving import server as ours
    from i3lm.serving.app import Served, _Form, build_app

    pieces = []
    form = _Form.piece
    monkeypatch.setattr(_Form, "piece", lambda *a, **k: pieces.append(0) or form(*a, **k))

    async def main() -> None:
        engine = _AllAtOnce()
        app = build_app(engine, Served("a", {}, max_new_tokens=2000, max_body=10_000))
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            config = uvicorn.Config(app, http=ours._Protocol, lifespan="off", log_level="error")
            serving = uvicorn.Server(config)
            task = asyncio.create_task(serving.serve([listener]))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, request(ENDLESS))
            while not pieces:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            if leaves == "resets":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            else:
                client.shutdown(socket.SHUT_WR)
            engine.give(1000)
            async with asyncio.timeout(10):
                while not engine.job.gone.is_set():
                    await asyncio.sleep(0.01)
            serving.should_exit = True
            client.close()
            await task

    asyncio.run(main())
    assert not [one for one in caplog.records if one.name == "asyncio"]
    assert len(pieces) < 150


def test_a_client_that_reads_slowly_gets_everything(server):
    asked = {**ENDLESS, "max_tokens": 4000}
    with connection(server, asked, buffer=4096) as opened:
        server.until(1)
        server.until(0, seconds=20)  # the model need not wait for it
        assert server.ask(CHAT, SHORT)[0] == 200
        head, _, body = read_all(opened).decode().partition("\r\n\r\n")
    assert " 200 " in head
    text = "".join(part for i, part in enumerate(body.split("\r\n")) if i % 2)
    assert len(list(events(text))) > 1000


def test_what_is_no_http(server):
    for nonsense in (
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"\x00" * 1000,
        b"GET / HTTP/9\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 10) as opened:
            opened.sendall(nonsense)
            opened.shutdown(socket.SHUT_WR)
            opened.recv(1000)
    upgrade = {"upgrade": "websocket", "connection": "upgrade", "sec_websocket_version": "13"}
    assert server.ask("/", **upgrade)[0] == 200
    server.until(0)


# ---- how it stops


def test_a_reply_that_runs_ends_before_the_server_does(folder):
    with Server(folder, "--max-new-tokens", "1000000", "--workers", "1") as server:
        with connection(server, {**ENDLESS, "max_tokens": 2000}) as one:
            server.until(1)
            with connection(server, ENDLESS) as two, connection(server, SHORT) as three:
                server.until(1, 2)
                server.process.send_signal(signal.SIGTERM)
                texts = [read_all(opened).decode() for opened in (one, two, three)]
        assert server.process.wait(2) == 0
        assert server.errors == ""
    assert "stopped" not in texts[0]
    assert '"finish_reason":"length"' in texts[0]
    assert "the server was stopped before the reply had ended" in texts[1]
    assert all("[DONE]" in text for text in texts[:2])
    assert " 503 " in texts[2].partition("\r\n")[0]


def test_the_second_signal_ends_at_once(public):
    with connection(public, ENDLESS):
        public.until(1)
        public.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert public.process.poll() is None
        begun = time.monotonic()
        public.end(signal.SIGTERM)
        assert time.monotonic() - begun < 2


def test_connections_that_do_nothing_are_closed(monkeypatch):
    import uvicorn

    from i3lm.serving import server as ours

    monkeypatch.setattr(ours, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(ours, "SEND_SECONDS", 0.2)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"a" * 65536, "more_body": True})
        await send({"type": "http.response.body"})

    async def ended(port: int, data: bytes) -> bool:
        """Send, take nothing for a while, and say whether the connection was ended."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        writer.write(data)
        await asyncio.sleep(0.6)
        try:
            whole = await reader.read()
        except ConnectionError:
            return True
        finally:
            writer.close()
        return not whole.endswith(b"0\r\n\r\n")

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = uvicorn.Config(app, http=ours._Protocol, lifespan="off", log_level="error")
            serving = uvicorn.Server(config)
            task = asyncio.create_task(serving.serve([listener]))
            port = listener.getsockname()[1]
            assert await ended(port, b"")
            assert await ended(port, b"GET / HTTP/1.1\r\nHost:")
            assert await ended(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert not serving.server_state.connections
            serving.should_exit = True
            await task

    asyncio.run(main())


def test_a_body_that_does_not_come(monkeypatch):
    from i3lm.serving import guard

    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)
    sent = []

    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async def receive():
        await asyncio.sleep(0.07)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message):
        sent.append(message)

    async def main() -> None:
        headers = [(b"host", b"a"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await guarded(scope, receive, send)

    guarded = guard.Guard(app, key=None, hosts=(), origins=(), max_body=100)
    asyncio.run(main())
    assert sent[0]["status"] == 408
    monkeypatch.setattr(guard, "BODY_SECONDS", 10)
    monkeypatch.setattr(guard, "BODIES", 3)
    sent.clear()
    asyncio.run(main())
    assert sent[0]["status"] == 503
    assert guarded._held == 0


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
