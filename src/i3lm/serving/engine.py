"""Generation for many clients: a few threads, a queue of bounded length, nothing accepted lost."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from i3lm.chatting import Message, open_chat
from i3lm.folder import Loaded
from i3lm.generation import settled, stream
from i3lm.streaming import TokenText


class Busy(Exception):
    """No place in the queue, or no time left; ask again later."""


@dataclass(frozen=True)
class Wanted:
    """A request for text: a reply to `messages`, or what continues `prompt` where there are none.

    `sampling`: temperature, top_p, top_k and seed.
    """

    prompt: str
    messages: list[Message] | None
    max_new_tokens: int
    stop: list[str]
    sampling: dict[str, Any]


@dataclass
class Reply:
    """What is known of a reply, whole once its text has ended."""

    prompt_tokens: int = 0
    tokens: int = 0
    finish_reason: str = "stop"
    notices: list[str] = field(default_factory=list)
    forgotten: int = 0  # messages, the oldest


class Job(AsyncIterator[str]):
    """A request that was accepted: gives its text in pieces, and fills in `reply`.

    Raises, at the first piece, UserError for what the model cannot do, such as roles that do not
    alternate; Busy where the server stopped before the text had begun.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted, self.reply, self.future = wanted, Reply(), Future[None]()
        self.gone = threading.Event()
        self._pieces = asyncio.Queue[str | BaseException | None]()
        self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> str:
        item = await self._pieces.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def put(self, item: str | BaseException | None) -> None:
        """Hand a piece, the end (None) or an error over from another thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)

    def cancel(self) -> None:
        """End at the next token: nobody wants the rest."""
        self.gone.set()
        self.future.cancel()


def _begin_thread(threads: int) -> None:
    """Prepare a thread that generates: numpy's setting, as OpenMP's, is a thread's own."""
    torch.set_num_threads(threads)
    np.seterr(all="ignore")  # what is not finite is found in the logits


class Engine:
    """Runs requests on `workers` threads; at most `queue` wait, more are refused with `Busy`.

    A reply ends after `seconds` at the latest, counted from when its turn has come, and at once
    where its client has gone. Where the compiled kernels run, threads work at the same time.
    """

    def __init__(self, loaded: Loaded, *, workers: int, queue: int, seconds: float) -> None:
        self.loaded, self._seconds, self._workers = settled(loaded), seconds, workers
        self._limit, self._accepted = workers + queue, 0
        self._lock, self._stopping = threading.Lock(), threading.Event()
        threads = max(1, torch.get_num_threads() // workers)
        self._pool = ThreadPoolExecutor(workers, "generate", _begin_thread, (threads,))
        loaded.tokenizer.encode("")  # makes its tables, before threads would

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        running = min(self._accepted, self._workers)
        return running, self._accepted - running

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Refuse what waits and what comes, end what runs at its next token."""
        self._stopping.set()

    def close(self) -> None:
        """Stop, and wait for the threads."""
        self.stop()
        self._pool.shutdown()

    def submit(self, wanted: Wanted) -> Job:
        """Take a request into the queue; Busy where there is no place."""
        with self._lock:
            if self.stopping or self._accepted >= self._limit:
                raise Busy("the server is stopping" if self.stopping else "the queue is full")
            self._accepted += 1
        job = Job(wanted)
        job.future = self._pool.submit(self._run, job)
        job.future.add_done_callback(self._leave)
        return job

    def _leave(self, _: Future[None]) -> None:
        with self._lock:
            self._accepted -= 1

    def _run(self, job: Job) -> None:
        try:
            if self.stopping:
                raise Busy("the server is stopping")
            for piece in self._pieces(job):
                job.put(piece)
            job.put(None)
        except BaseException as error:
            job.put(error)

    def _pieces(self, job: Job) -> Iterator[str]:
        reply, end = job.reply, time.monotonic() + self._seconds
        with contextlib.closing(self._open(job.wanted, reply, reply.notices.append)) as text:
            reply.prompt_tokens = text.prompt_tokens
            cut = None
            for piece in text:
                reply.tokens = text.tokens
                yield piece
                if job.gone.is_set():
                    return
                if self.stopping:
                    cut = "the server was stopped before the reply had ended"
                elif time.monotonic() > end:
                    cut = f"the reply was ended after {self._seconds:g} seconds"
                if cut:
                    reply.notices.append(cut)
                    break
            reply.tokens = text.tokens
            reply.finish_reason = "length" if cut or text.finish_reason == "length" else "stop"

    def _open(self, wanted: Wanted, reply: Reply, notify: Callable[[str], None]) -> TokenText:
        settings = {**wanted.sampling, "max_new_tokens": wanted.max_new_tokens, "notify": notify}
        if wanted.messages is None:
            return stream(self.loaded, wanted.prompt, stop=wanted.stop, **settings)
        talk, text = open_chat(self.loaded, wanted.messages, **settings)
        opened = talk.begin(text, wanted.stop)
        reply.forgotten = talk.forgotten
        return opened
