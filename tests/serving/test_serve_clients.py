"""Clients that leave, are slow or send nothing; what becomes of replies when the server stops."""

import asyncio
import contextlib
import signal
import socket
import struct
import time

import pytest
from serving_helpers import CHAT, ENDLESS, SHORT, Server, events, read_all, request

from i3lm.serving.engine import Job, Wanted


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
        opened.recv(1, socket.MSG_PEEK)  # it has begun
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
    with Server(folder, "--max-new-tokens", "1000000", "--workers", "1", grace=8) as server:
        asked = ({**ENDLESS, "max_tokens": 200}, ENDLESS, SHORT)
        with contextlib.ExitStack() as stack, connection(server, ENDLESS) as held_up:
            server.until(1)
            opened = []
            for waiting, body in enumerate(asked, 1):
                opened.append(stack.enter_context(connection(server, body)))
                server.until(1, waiting)
            held_up.close()
            server.process.send_signal(signal.SIGTERM)
            texts = [read_all(one).decode() for one in opened]
        assert server.process.wait(60) == 0
        assert server.errors == ""
    assert "stopped" not in texts[0]
    assert '"finish_reason":"length"' in texts[0]
    assert "the server was stopped before the reply had ended" in texts[1]
    assert all("[DONE]" in text for text in texts[:2])
    assert " 503 " in texts[2].partition("\r\n")[0]


def test_the_second_signal_ends_at_once(folder):
    patient = Server(folder, "--max-new-tokens", "1000000", grace=600)
    with patient as server, connection(server, ENDLESS):
        server.until(1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.process.poll() is None
        server.end(signal.SIGTERM, seconds=60)


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
        if data.endswith(b"\r\n\r\n"):
            await reader.readexactly(1)  # the answer has begun
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
