"""How launched processes find each other, see that they train the same, and part.

Nothing here runs in a process that was started alone.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

import i3lm
from i3lm.data import Corpus
from i3lm.errors import UserError
from i3lm.launch import Launch, launch
from i3lm.training.config import LOCAL, TrainConfig
from i3lm.training.parallel import Alone, Lost, Replicas, talking
from i3lm.training.signals import ignore

JOIN_SECONDS = 60.0  # at most, to find each other
POLL_SECONDS = 0.1
ANSWER_SECONDS = 10.0  # that the store may take
LAST_WORDS = 1.0  # seconds in which those that lost a process see who is left
SIOCGIFADDR = 0x8915  # netdevice(7): the address of an interface
Answer = TypeVar("Answer")
ALONE = (
    "--parallel fsdp divides a model among processes, and this one is alone; leave it away, or "
    "start several: torchrun --nproc-per-node 2 -m i3lm train ..."
)
FAILED, LOST = "failed", "lost"
SHARED = ("parallel", "sync_every", "sync_bits", "steps", "ddp_timeout", "device")


class Meeting:
    """The notice board of all processes: a key-value store, torchrun's or rank 0's.

    Its texts are JSON; nothing of another process is unpickled.
    """

    def __init__(self, launch: Launch, seconds: float) -> None:
        self.launch = launch
        seconds = min(seconds, JOIN_SECONDS)
        try:
            store = dist.TCPStore(
                launch.address,
                launch.port,
                is_master=launch.rank == 0 and not launch.agent,
                wait_for_workers=False,
                timeout=datetime.timedelta(seconds=seconds),
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{launch.name} cannot reach {launch.address}:{launch.port} within {seconds:g} s "
                f"({_first_line(error)}); is process 0 up, and the port open?"
            ) from None
        self.store = dist.PrefixStore(f"i3lm/{launch.restarts}", store)
        self.seconds = seconds

    def introduce(self, facts: dict) -> list[dict]:
        """Tell all who this is; return the same of each. UserError names who did not come."""
        facts = {**facts, "host": socket.gethostname(), "size": self.launch.size}
        self.tell(f"facts/{self.launch.rank}", json.dumps(facts))
        end = time.monotonic() + self.seconds
        names = [f"facts/{rank}" for rank in range(self.launch.size)]
        while missing := [n for n in names if not self._told(n)]:
            if time.monotonic() > end:
                ranks = ", ".join(n.rpartition("/")[2] for n in missing)
                raise UserError(
                    f"of {self.launch.size} processes {ranks} did not come within "
                    f"{self.seconds:g} s; start as many as --nnodes and --nproc-per-node say"
                )
            time.sleep(POLL_SECONDS)
        return [json.loads(self.hear(name)) for name in names]

    def tell(self, name: str, text: str) -> None:
        """Put a text up for all."""
        self._ask(lambda: self.store.set(name, text))

    def hear(self, name: str) -> str:
        """Wait for a text; Lost where its writer has left."""
        while not self._told(name):
            for rank in range(self.launch.size):
                if self._told(f"left/{rank}"):
                    raise Lost(f"process {rank} has left")
            time.sleep(POLL_SECONDS)
        return self._ask(lambda: self.store.get(name)).decode()

    def _told(self, name: str) -> bool:
        return self._ask(lambda: self.store.check([name]))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the store's answer; Lost where none comes.

        On a link that is down the store's client waits for a quarter of an hour, whatever its
        timeout: a thread of its own does.
        """
        answers: list[Answer] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(min(self.seconds, ANSWER_SECONDS))
        if not answers:
            raise Lost("process 0 does not answer")
        return answers[0]

    def mark(self, why: str) -> None:
        """Say that this process leaves, and whether by a failure of its own."""
        self._ask(lambda: self.store.set(f"left/{self.launch.rank}", why))

    def leave(self, reason: UserError | Lost, hosts: list[str]) -> NoReturn:
        """End this process so that one line is said by all of them together.

        The line is that of the first that failed by itself, else of the first that is left, which
        names who is not.
        """
        text = str(reason)
        ignore()  # torchrun ends all once one has ended; some words come first
        try:
            self.mark(FAILED if isinstance(reason, UserError) else LOST)
            time.sleep(LAST_WORDS)
            ranks = range(self.launch.size)
            left = {r: self.hear(f"left/{r}") for r in ranks if self._told(f"left/{r}")}
        except Lost:
            text = f"it is cut off from process 0 ({text}); the others end by themselves"
            self._say(text)
            os._exit(2)  # nothing that waits for the link may hold it up
        else:
            failed = [r for r, why in left.items() if why == FAILED]
            if self.launch.rank != min(failed or left):
                time.sleep(LAST_WORDS)
                raise SystemExit(2)
            if not failed:
                gone = [f"process {r} on {hosts[r]}" for r in ranks if r not in left]
                who = " and ".join(gone) + " does not answer" if gone else "a connection broke"
                saved = getattr(reason, "saved", None)
                where = "the last checkpoint" if saved is None else f"step {saved}, which is saved"
                text = f"{who} ({text}); go on from {where}, with --resume"
        if self.launch.rank == 0:
            raise UserError(text)
        self._say(text)
        raise SystemExit(2)

    def _say(self, text: str) -> None:
        print(f"error: {self.launch.name}:", " ".join(text.split()), file=sys.stderr, flush=True)

    def part(self) -> None:
        """Wait for the chief, which has a model to write: torchrun ends all where one fails."""
        if self.launch.rank == 0:
            self.tell("done", "")
            return
        with contextlib.suppress(Lost):
            self.hear("done")


@contextlib.contextmanager
def joined(config: TrainConfig, resume: bool) -> Iterator[tuple[Alone, Meeting | None]]:
    """Give this process's group and its notice board: (Alone, None) where it was started alone.

    All compare versions, code and settings before anything is done. UserError, said by one of
    them, for whatever differs; SystemExit with code 2 in the others.
    """
    who = launch()
    if who.size == 1:
        if config.parallel == "fsdp" and not resume:
            raise UserError(ALONE)
        yield Alone(who), None
        return
    meeting = Meeting(who, config.ddp_timeout)
    hosts = [""] * who.size
    try:
        facts = meeting.introduce(_facts(config, resume))
        hosts[:] = [str(fact["host"]) for fact in facts]
        _compare(facts)
        config = dataclasses.replace(config, **facts[0]["shared"])
        device = torch.device(config.device).type
        _choose_interface(who.address)
        with talking():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=dist.PrefixStore("torch", meeting.store),
                rank=who.rank,
                world_size=who.size,
                timeout=datetime.timedelta(seconds=config.ddp_timeout),
            )
        yield _group(config, who, hosts), meeting
        meeting.part()
    except (UserError, Lost) as error:
        meeting.leave(error, hosts)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _choose_interface(address: str) -> None:
    """Let gloo use the interface that leads to the first process, where nobody has chosen one.

    By itself it takes what the host's name stands for, which on many machines is the loopback.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or not sys.platform.startswith("linux"):
        return
    import fcntl

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 1))  # sends nothing
        mine = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode())
                if fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24] == mine:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return


def _group(config: TrainConfig, who: Launch, hosts: list[str]) -> Replicas:
    if config.parallel == "diloco":
        from i3lm.training.diloco import LocalSteps

        return LocalSteps(who, hosts, config.sync_every, config.steps, config.sync_bits)
    if config.parallel == "fsdp":
        from i3lm.training.sharded import Sharded

        return Sharded(who, hosts)
    return Replicas(who, hosts)


def _facts(config: TrainConfig, resume: bool) -> dict:
    """Return what must be the same in all processes, by the words of a message."""
    settings = {k: v for k, v in json.loads(config.to_json()).items() if k not in (*LOCAL, "check")}
    code = hashlib.sha256()
    for path in sorted(Path(i3lm.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    return {
        "version": i3lm.__version__,
        "torch": torch.__version__,
        "code": code.hexdigest()[:12],
        "resume": resume,
        # What a run that goes on has of these only the first process knows.
        "shared": {name: getattr(config, name) for name in SHARED},
        "settings": {} if resume else settings,  # else the chief's, of its run.json
    }


def _compare(facts: list[dict]) -> None:
    words = {
        "size": "a world size of",
        "version": "i3lm",
        "torch": "torch",
        "code": "i3lm's code of digest",
        "resume": "--resume:",
    }
    first = facts[0]
    for rank, fact in enumerate(facts):
        who = f"process {rank} on {fact['host']}"
        for name, word in words.items():
            if fact[name] != first[name]:
                raise UserError(
                    f"{who} has {word} {fact[name]}, process 0 {first[name]}; start the same "
                    "command with the same installation everywhere"
                )
        for name, value in first["settings"].items():
            if fact["settings"].get(name) != value:
                raise UserError(
                    f"{who} has --{name.replace('_', '-')} {fact['settings'].get(name)}, process 0 "
                    f"{value}; start the same command everywhere"
                )


def shared_config(meeting: Meeting, config: TrainConfig) -> TrainConfig:
    """Return the chief's configuration with what each process has for itself."""
    if meeting.launch.rank == 0:
        meeting.tell("config", config.to_json())
        return config
    own = {name: getattr(config, name) for name in LOCAL if name != "device"}
    return TrainConfig.parse(meeting.hear("config"), own)


def shared_corpus(meeting: Meeting, folder: Path, make: Callable[[], Corpus]) -> Corpus:
    """Return the corpus that the chief makes; other machines open its folder, or make the same.

    UserError where a machine's text is another.
    """
    who = meeting.launch
    if who.rank == 0:
        corpus = make()
        meeting.tell("corpus", _digest(corpus))
        return corpus
    wanted, ready = meeting.hear("corpus"), f"corpus/{who.machine}"
    if who.machine and who.local_rank == 0:
        try:  # a folder that all machines share
            corpus = Corpus.open(folder)
        except UserError:
            corpus = make()
        if _digest(corpus) != wanted:
            corpus = make()
        meeting.tell(ready, "")
    elif who.machine:
        meeting.hear(ready)
    corpus = Corpus.open(folder)
    if _digest(corpus) != wanted:
        raise UserError(
            "its text is not that of process 0; give every machine the same files, or --out in a "
            "folder that all share"
        )
    return corpus


def _digest(corpus: Corpus) -> str:
    manifest = corpus.manifest
    return json.dumps(
        [manifest["tokenizer"], manifest["train"]["sha256"], manifest["held_out"]["sha256"]]
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
