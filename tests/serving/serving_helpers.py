"""A real server process, and requests to it without a client library."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WINDOW = 32
HELLO = [{"role": "user", "content": "the cat"}]
CHAT = "/v1/chat/completions"
SHORT = {"messages": HELLO, "max_tokens": 4, "seed": 1}
WITH_GRACE = """
import sys
from i3lm.__main__ import main
from i3lm.serving import server
server.GRACE_SECONDS = {}
sys.exit(main())
"""
ENDLESS = {"messages": HELLO, "max_tokens": 1_000_000, "stream": True}


class Server:
    """`i3lm serve FOLDER`, on a port that is free or the one given, until the block ends.

    `grace`: the seconds that replies have to end, where they are not its own.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        key: str | None = None,
        port: int = 0,
        grace: float | None = None,
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "I3LM_API_KEY"}
        if key is not None:
            environment["I3LM_API_KEY"] = key
        command = ["-m", "i3lm"] if grace is None else ["-c", WITH_GRACE.format(grace)]
        self.process = subprocess.Popen(
            [sys.executable, *command, "serve", str(folder), "--port", str(port), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.printed = [self.process.stdout.readline() for _ in range(4)]
        self.url = self.printed[1].split()[-1].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        self.errors = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 10) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer. body: bytes, or what becomes JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            named.setdefault("content-type", "application/json")
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 30)) as asked:
            asked.request(method or ("GET" if data is None else "POST"), path, data, named)
            answer = asked.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def refused(self, path: str, body: Any = None, **more: str) -> tuple[int, dict[str, Any]]:
        """Return status and error of a request that must fail, in OpenAI's form."""
        status, headers, answer = self.ask(path, body, **more)
        assert status >= 400
        assert headers["content-type"] == "application/json"
        error = json.loads(answer)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert "\n" not in error["message"]
        return status, error

    def load(self) -> tuple[int, int]:
        """Return how many requests run and wait."""
        answer = json.loads(self.ask("/health")[2])
        return answer["running"], answer["waiting"]

    def until(self, running: int, waiting: int = 0, seconds: float = 10) -> None:
        """Wait until so many run and wait."""
        end = time.monotonic() + seconds
        while self.load() != (running, waiting):
            assert time.monotonic() < end, self.load()
            time.sleep(0.02)

    def memory(self, name: str = "VmHWM") -> int:
        """Return bytes: the peak of the resident memory, or VmRSS."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(text.partition(f"{name}:")[2].split()[0])


def request(body: Any, path: str = "/v1/chat/completions") -> bytes:
    """Return a whole HTTP request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def events(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON of server-sent events; they must end with [DONE]."""
    *found, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in found:
        yield json.loads(event.removeprefix("data: "))


def read_all(opened: socket.socket) -> bytes:
    """Return what comes until the end of a chunked answer, or of the connection."""
    found = bytearray()
    while part := opened.recv(1 << 20):
        found += part
        if found.endswith(b"0\r\n\r\n"):
            break
    return bytes(found)
