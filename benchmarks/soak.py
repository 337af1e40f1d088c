"""Training under a fault a minute, held against a run beside it that nothing disturbs.

    python -m benchmarks.soak --minutes 120

Both runs have one thread and go on at the same time. Every fault is a real one: signals, a process
that stands still, a disk that takes no more, bytes that flip. At the end weights, optimizer states
and metrics must be those of the clean run.
"""

import argparse
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.common import RESULTS, save, setting
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.metrics import read_metrics

TIMES = ("seconds", "tokens_per_second", "memory", "note")  # what no two runs share


class Soak:
    """The disturbed run: a process at a time, and what was done to it."""

    def __init__(self, run: Path, start: list[str], seed: int) -> None:
        self.run, self.start, self.chance = run, start, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.starts, self.lost, self.most = 0, 0, 0
        self.child: subprocess.Popen | None = None
        self.begin()

    def begin(self) -> None:
        """Start, or go on."""
        begun = (self.run / "run.json").exists()
        line = ["--resume", str(self.run)] if begun else self.start
        log = open(self.run.with_suffix(".log"), "ab")  # noqa: SIM115 (the child's)
        self.child = subprocess.Popen([sys.executable, "-m", "i3lm", "train", *line], stderr=log)
        log.close()
        self.starts += 1

    def end(self, number: int, *codes: int) -> None:
        """Send a signal, wait, and count the steps that are gone."""
        reached = last_step(self.run)
        self.child.send_signal(number)
        for _ in range(600):  # a minute of this process's own: a machine that sleeps is waited for
            if self.child.poll() is not None:
                break
            time.sleep(0.1)
        code = self.child.poll()
        if code not in (0, 2, *codes):
            raise SystemExit(f"{signal.Signals(number).name}: exit code {code}, not {codes}")
        kept = newest_step(self.run)
        self.most = max(self.most, reached - kept)
        self.lost += max(0, reached - kept)

    def kill(self) -> None:
        """kill -9."""
        self.end(signal.SIGKILL, -signal.SIGKILL)

    def kill_while_writing(self) -> None:
        """kill -9 within 50 ms of a checkpoint's beginning."""
        until = time.monotonic() + 30
        while time.monotonic() < until and self.child.poll() is None:
            if list((self.run / "checkpoints").glob(".writing-*")):
                time.sleep(self.chance.uniform(0, 0.05))
                break
            time.sleep(0.0005)
        self.kill()

    def terminate(self) -> None:
        """SIGTERM: saved, exit code 130."""
        self.end(self.chance.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT)), 130)

    def terminate_twice(self) -> None:
        """A second signal while the first is obeyed."""
        self.child.send_signal(signal.SIGTERM)
        time.sleep(self.chance.uniform(0, 0.1))
        self.end(signal.SIGTERM, 130, -signal.SIGTERM)

    def stand_still(self) -> None:
        """SIGSTOP for some seconds."""
        self.child.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(1, 10))
        self.child.send_signal(signal.SIGCONT)

    def full_disk(self) -> None:
        """No file may grow beyond a few bytes, for some seconds."""
        limit = self.chance.choice((0, 100, 10_000, 1_000_000))
        try:
            old = resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (limit, old[1]))
            time.sleep(self.chance.uniform(5, 15))
            resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, old)
        except ProcessLookupError:  # it came to its end, which could not be written
            self.child.wait()

    def flip(self) -> None:
        """A bit flips in the newest checkpoint."""
        self.kill()
        path = self.any_file()
        if path is None:
            return
        data = bytearray(path.read_bytes())
        data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        path.write_bytes(data)

    def tear(self) -> None:
        """A file of the newest checkpoint loses its end."""
        self.kill()
        path = self.any_file()
        if path is not None:
            os.truncate(path, self.chance.randrange(path.stat().st_size))

    def torn_metrics(self) -> None:
        """Half a row stays at the end of metrics.jsonl."""
        self.kill()
        with open(self.run / "metrics.jsonl", "ab") as file:
            file.write(b'{"step": 12, "lo')

    def any_file(self) -> Path | None:
        """Return a file of the newest checkpoint, where there is an older one to fall back to."""
        found = list_checkpoints(self.run)
        return self.chance.choice(sorted(found[0].iterdir())) if len(found) > 1 else None

    FAULTS = (
        kill, kill_while_writing, terminate, terminate_twice, stand_still, full_disk, flip, tear,
        torn_metrics,
    )  # fmt: skip

    def disturb(self) -> None:
        """Do one of the faults, then see to it that the run goes on."""
        fault = self.chance.choice(self.FAULTS)
        fault(self)
        self.faults[fault.__name__] += 1
        if self.child.poll() is not None:
            self.begin()


def last_step(run: Path) -> int:
    """Return the last step in the metrics, 0 where there is none."""
    path = run / "metrics.jsonl"
    return max((row["step"] for row in read_metrics(path)), default=0) if path.exists() else 0


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    found = list_checkpoints(run)
    return int(found[0].name.rpartition("-")[2]) if found else 0


def outcome(run: Path) -> dict[str, str]:
    """Return digests of what a run leaves: weights, states, model, metrics without times."""
    files = {path.name: path for path in list_checkpoints(run)[0].glob("*.safetensors")}
    files["model"] = run / "model.safetensors"
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    rows = [
        {k: v for k, v in row.items() if k not in TIMES}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    digests["metrics"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return digests


def train(*arguments: str) -> subprocess.Popen:
    """Start `i3lm train`."""
    line = [sys.executable, "-m", "i3lm", "train", *arguments, "--quiet", "--json"]
    return subprocess.Popen(line, stdout=subprocess.PIPE)


def figures_of(child: subprocess.Popen) -> dict:
    """Wait for a run's end; return its figures."""
    printed, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"the undisturbed run ended with exit code {child.returncode}")
    return json.loads(printed)


def main() -> None:
    """Train disturbed and undisturbed, compare; exit code 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120, help="of training")
    parser.add_argument("--every", type=float, default=60, help="seconds between faults")
    parser.add_argument("--checkpoint-every", default="10s")
    parser.add_argument("--preset", default="i3-tiny")
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    options = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the runs would not hear it, nor
    signal.signal(signal.SIGINT, signal.default_int_handler)  # this in a shell's background
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    common = ["--preset", options.preset, "--batch-tokens", "256", "--threads", "1"]
    common += ["--precision", "fp32"]
    trial, clean, run = (options.out / name for name in ("trial", "clean", "disturbed"))
    figures = figures_of(train(*common, "--out", str(trial), "--steps", "50"))
    pace = figures["steps"] / (60 * figures["minutes"])
    steps = options.steps or round(60 * options.minutes * pace)
    common += ["--steps", str(steps), "--eval-every", str(max(1, steps // 10))]
    for folder in (clean, run):
        folder.mkdir()
        shutil.copytree(trial / "data", folder / "data")
    begin = time.monotonic()
    beside = train(*common, "--out", str(clean))
    every = ["--checkpoint-every", options.checkpoint_every, "--quiet"]
    soak = Soak(run, [*common, *every, "--out", str(run)], options.seed)
    while True:
        until = time.monotonic() + soak.chance.uniform(0.5, 1.5) * options.every
        if time.monotonic() - begin > 60 * options.minutes:
            until = math.inf  # slower than it was alone: the rest goes undisturbed
        while time.monotonic() < until and soak.child.poll() is None:
            time.sleep(0.1)
        if soak.child.poll() == 0:
            break
        if soak.child.poll() is not None:  # it could not write its end: the disk is free again
            soak.begin()
            continue
        soak.disturb()
        print(f"step {last_step(run):,} of {steps:,}, {soak.faults.total()} faults", flush=True)
    seconds = round(time.monotonic() - begin)
    undisturbed = figures_of(beside)
    found, wanted = outcome(run), outcome(clean)
    result = {
        "preset": options.preset,
        "steps": steps,
        "seconds_undisturbed": round(60 * undisturbed["minutes"]),
        "seconds_disturbed": seconds,
        "faults": dict(soak.faults),
        "starts": soak.starts,
        "most_steps_lost_at_once": soak.most,
        "steps_done_again": soak.lost,
        "equal": {name: found[name] == wanted[name] for name in wanted},
    }
    save({**result, **setting()}, RESULTS / "soak.json")
    print(json.dumps(result, indent=2))
    sys.exit(not all(result["equal"].values()))


if __name__ == "__main__":
    main()
