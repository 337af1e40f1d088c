"""`i3lm serve`: binds, loads, answers, and stops when asked."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from i3lm.errors import UserError
from i3lm.files import read_small
from i3lm.folder import load_folder
from i3lm.model_info import info
from i3lm.serving.app import Served, build_app
from i3lm.serving.engine import Engine

HEAD_SECONDS, SEND_SECONDS = 20.0, 60.0  # for a request's head to come; for a reply to be taken
GRACE_SECONDS = 4.0  # for replies to end once the server was asked to stop
CONNECTIONS = 4096
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    max_new_tokens: int = 1024,
    seconds: float = 120,
    workers: int | None = None,
    queue: int = 64,
    max_body: int = 2_000_000,
    origins: Sequence[str] = (),
    device: str = "cpu",
    ready: Callable[[str, dict[str, Any], bool], None] = lambda url, facts, local: None,
) -> None:
    """Serve the model in `folder` over HTTP until SIGINT or SIGTERM.

    port: 0 takes any that is free. seconds: for one reply. workers: replies at one time, as many as
    there are cores without it. queue: how many more may wait. max_body: bytes of a request. `ready`
    gets the address, the model's description and whether only this computer can reach it.
    UserError where the address cannot be had or the folder holds no sound model.
    """
    with _bound(host, port) as listener:
        name, number = listener.getsockname()[:2]
        local = ipaddress.ip_address(name).is_loopback
        hosts = {"localhost", "127.0.0.1", "[::1]", _in_url(name), host.lower()} if local else set()
        loaded, facts = load_folder(folder, device), _facts(Path(folder))
        engine = Engine(
            loaded, workers=workers or torch.get_num_threads(), queue=queue, seconds=seconds
        )
        served = Served(
            Path(folder).resolve().name,
            facts,
            max_new_tokens=max_new_tokens,
            max_body=max_body,
            key=key,
            hosts=hosts,
            origins=origins,
        )
        config = uvicorn.Config(
            build_app(engine, served),
            loop="asyncio",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(GRACE_SECONDS) + 2,
        )
        url = f"http://{_in_url(name)}:{number}"
        server = _Server(config, engine, lambda: ready(url, {"id": served.id, **facts}, local))
        _allow_files(CONNECTIONS + 256)
        try:
            server.run([listener])
        finally:
            engine.close()


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"--host {host} is no address of this computer ({error.strerror})"
        ) from None
    with listener:
        if hasattr(signal, "SIGHUP"):  # elsewhere the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            raise UserError(
                f"port {port} of {host} is not to be had ({error.strerror}); "
                "choose another with --port, or 0 for any"
            ) from None
        yield listener


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _facts(folder: Path) -> dict[str, Any]:
    """Return what clients may know of the model."""
    about = info(folder)
    facts: dict[str, Any] = {
        "parameters": about["parameters"],
        "context_window": about["window"],
        "layers": about["architecture"]["num_hidden_layers"],
        "hidden_size": about["architecture"]["hidden_size"],
        "vocabulary": about.get("tokens", about["vocabulary"]),
        "weight_bits": about["weight_bits"],
        "weights_bytes": about["weights_file"]["bytes"],
    }
    for name in ("step", "held_out_bits_per_character"):
        if name in (about.get("run") or {}):
            facts[name] = about["run"][name]
    with contextlib.suppress(OSError, ValueError):
        card = read_small(folder / "README.md", limit=100_000).decode()
        facts["card"] = card.rpartition("\n---\n")[2].strip() if card.startswith("---") else card
    return facts


def _allow_files(count: int) -> None:
    """Let the process hold as many connections as we accept, as far as the system allows it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    """uvicorn's server: the first signal lets replies end, for a while; the second does not."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine, self._ready = engine, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._engine.stop)
        await super().shutdown(sockets)
        ending.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self._engine.stop()
        self.should_exit = True


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which also leaves clients that send no request or take no reply."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._limit(None)
        elif self._timer is None:
            self._limit(HEAD_SECONDS)

    def eof_received(self) -> None:
        """Count a client that says no more as gone: its connection closes with what is written."""
        super().eof_received()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self.flow.resume_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit(SEND_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._limit(None)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._limit(SEND_SECONDS)  # for what lies in the buffer

    def connection_lost(self, exc: Exception | None) -> None:
        self._limit(None)
        super().connection_lost(exc)

    def _limit(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        later = self.loop.call_later
        self._timer = None if seconds is None else later(seconds, self.transport.abort)
