"""Two machines on a slow link: plain gradient sums against local steps (DiLoCo).

`make links`: two network namespaces with a link of 100 Mbit/s and 50 ms there and back between
them, a process of one thread in each, about ten minutes. Bytes are what the link counted, both
ways, start-up included. Where namespaces are not allowed it says so and does nothing.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import common
from benchmarks.relay import DEVICE
from i3lm.training.metrics import read_metrics

ENDS = {f"i3lm{os.getpid()}-0": "10.201.7.1", f"i3lm{os.getpid()}-1": "10.201.7.2"}
FIRST, SECOND = ENDS
PORT = 29517
RATE, DELAY = 100e6, 0.025  # bits a second, and seconds each way
PACKET = 9000  # bytes
COMMON = (
    *("--preset", "i3-tiny", "--precision", "fp32", "--threads", "1", "--quiet"),
    *("--eval-every", "1000000"),
)
WAYS = {
    "ddp": [],
    "diloco, 32 bits": ["--parallel", "diloco", "--sync-bits", "32"],
    "diloco, 8 bits": ["--parallel", "diloco", "--sync-bits", "8"],
    "diloco, 4 bits": ["--parallel", "diloco", "--sync-bits", "4"],
}


def command(*words: str) -> str:
    """Run a program of iproute2; return what it prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def namespaces(rate: float = RATE, delay: float = DELAY, loss: float = 0.0) -> Iterator[None]:
    """Make two network namespaces with a slow link between them; drop them at the end.

    OSError or CalledProcessError where this is not allowed here.
    """
    relay = None
    try:
        for name in ENDS:
            command("ip", "netns", "add", name)
        words = [*ENDS, f"--rate={rate}", f"--delay={delay}", f"--loss={loss}"]
        line = [sys.executable, str(Path(__file__).with_name("relay.py")), *words]
        pipe = subprocess.PIPE
        relay = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True)
        assert relay.stdout
        if relay.stdout.readline() != "ready\n":
            raise OSError(relay.communicate()[1].strip().rpartition("\n")[2])
        for name, address in ENDS.items():
            command("ip", "-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
            command("ip", "-n", name, "link", "set", "lo", "up")
            command("ip", "-n", name, "link", "set", DEVICE, "mtu", str(PACKET), "up")
        yield
    finally:
        if relay is not None:
            relay.kill()
            relay.communicate()
        for name in ENDS:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def begin(number: int, *words: str, torchrun: tuple[str, ...] = ()) -> subprocess.Popen:
    """Begin `i3lm train WORDS` by torchrun as machine `number` of two."""
    name = list(ENDS)[number]
    where = ("--master-addr", ENDS[FIRST], "--master-port", str(PORT))
    launch = ("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1", *where)
    python = (sys.executable, "-m", "torch.distributed.run", *launch, *torchrun)
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *python, "-m", "i3lm", "train", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def sent() -> int:
    """Return the bytes that both ends of the link have sent."""
    total = 0
    for name in ENDS:
        (link,) = json.loads(command("ip", "-n", name, "-s", "-j", "link", "show", DEVICE))
        total += link["stats64"]["tx"]["bytes"]
    return total


def measure(folder: Path, way: list[str], words: list[str]) -> dict[str, float]:
    """Train once; return tokens, bytes a token, seconds and losses."""
    outs = [folder / name for name in ("first", "second")]
    for out in outs:  # the text is prepared once
        if (ready := folder.parent / out.name).exists():
            shutil.copytree(ready, out / "data")
    before, started = sent(), time.monotonic()
    children = [begin(n, *COMMON, *words, *way, "--out", str(outs[n])) for n in (0, 1)]
    for child in children:
        _, errors = child.communicate()
        if child.returncode:
            raise RuntimeError(errors)
    for out in outs:
        if not (ready := folder.parent / out.name).exists():
            shutil.copytree(out / "data", ready)
    rows = [row for row in read_metrics(outs[0] / "metrics.jsonl") if "loss" in row]
    scores = read_metrics(outs[0] / "metrics.jsonl")[-1]
    return {
        "tokens": rows[-1]["tokens"],
        "bytes_per_token": (sent() - before) / rows[-1]["tokens"],
        "seconds_of_training": rows[-1]["seconds"],
        "seconds_of_all": time.monotonic() - started,
        "loss_last_tenth": sum(r["loss"] for r in rows[-len(rows) // 10 :])
        / len(rows[-len(rows) // 10 :]),
        "held_out_bits_per_character": scores["held_out_bits_per_character"],
    }


def main() -> None:
    """Measure all ways and write results/links.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--sync-every", type=int, default=25)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "links.json")
    options = parser.parse_args()
    words = ["--steps", str(options.steps)]
    figures = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        try:
            stack.enter_context(namespaces())
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            print(f"skipped: no network namespaces here ({str(reason).strip()})")
            return
        for number, (name, way) in enumerate(WAYS.items()):
            every = ["--sync-every", str(options.sync_every)] if way else []
            place = Path(folder) / str(number)
            figures[name] = measure(place, [*way, *every], words)
            print(f"{name:16}", *(f"{k} {v:.4g}" for k, v in figures[name].items()), flush=True)
    settings = {
        "steps": options.steps,
        "sync_every": options.sync_every,
        "rate": RATE,
        "delay": DELAY,
    }
    common.save({**common.setting(), "settings": settings, "ways": figures}, options.out)


if __name__ == "__main__":
    main()
