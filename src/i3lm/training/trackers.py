"""Experiment trackers as listeners, through their own clients: TensorBoard, trackio, W&B.

All work without a network. W&B sends to its server only where it is logged in, or WANDB_MODE says
so; else it writes to the run's folder, for `wandb sync`. trackio's database is on this machine.
"""

import contextlib
import importlib.util
import io
import netrc
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from i3lm.errors import UserError, did_you_mean
from i3lm.files import write_atomic
from i3lm.training.config import TrainConfig
from i3lm.training.events import (
    Callback,
    EndRow,
    EvaluationRow,
    Guarded,
    Listener,
    StartRow,
    StepRow,
)

EVERY_SECONDS = 1.0  # of training between two rows that are sent: a step may take a millisecond
STEP = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory")
PROJECT = "i3lm"


class Tracker(Listener):
    """Sends figures as `train/loss`, ..., `held_out/bits_per_character`; made for one run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._last = -EVERY_SECONDS

    def begin(self, config: dict[str, Any], step: int) -> None:
        """Open the tracker's run."""
        raise NotImplementedError

    def log(self, values: dict[str, float], step: int) -> None:
        """Send figures."""
        raise NotImplementedError

    def text(self, prompt: str, reply: str, step: int) -> None:
        """Send a sample reply, where the tracker takes text."""

    def finish(self) -> None:
        """Close the tracker's run."""

    def on_start(self, row: StartRow) -> None:
        """Open the run with its configuration."""
        config = TrainConfig.load(self.run)
        self.begin({k: v for k, v in vars(config).items() if v is not None}, row["step"])

    def on_step(self, row: StepRow) -> None:
        """Send a step's figures, at most once a second."""
        if row["seconds"] - self._last < EVERY_SECONDS and row["progress"] < 1:
            return
        self._last = row["seconds"]
        values = {f"train/{name}": float(row[name]) for name in STEP}  # type: ignore[literal-required]
        self.log({**values, "train/tokens": row["tokens"]}, row["step"])

    def on_evaluation(self, row: EvaluationRow) -> None:
        """Send the held-out figure and a reply."""
        bits = row["held_out_bits_per_character"]
        self.log({"held_out/bits_per_character": bits}, row["step"])
        self.text(row["sample"]["prompt"], row["sample"]["reply"], row["step"])

    def on_end(self, row: EndRow) -> None:
        """Close the run."""
        self.finish()

    def identity(self, name: str) -> str:
        """Return the tracker's id of this run: the same one after a resume."""
        path = self.run / f".{name}-id"
        if not path.exists():
            write_atomic(path, uuid.uuid4().hex[:12].encode())
        return path.read_text(encoding="ascii")


class TensorBoard(Tracker):
    """Event files in `RUN/tensorboard`: `tensorboard --logdir RUN`."""

    def begin(self, config: dict[str, Any], step: int) -> None:
        """Open the event file; what came after the checkpoint is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1)
        lines = "\n".join(f"    {name}: {value}" for name, value in config.items())
        self.writer.add_text("configuration", lines, step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, prompt: str, reply: str, step: int) -> None:
        """Write the reply."""
        self.writer.add_text("sample", f"    {prompt}\n    {reply}", step)

    def finish(self) -> None:
        """Flush and close."""
        self.writer.close()


class Trackio(Tracker):
    """A run in trackio's database on this machine: `trackio show --project i3lm`."""

    def begin(self, config: dict[str, Any], step: int) -> None:
        """Open the run."""
        import trackio

        name = f"{self.run.resolve().name}-{self.identity('trackio')}"
        self.client = trackio
        with _silence():
            trackio.init(project=PROJECT, name=name, config=_plain(config), resume="allow")

    def log(self, values: dict[str, float], step: int) -> None:
        """Send figures."""
        self.client.log(values, step=step)

    def finish(self) -> None:
        """Close the run."""
        with _silence():
            self.client.finish()


class Wandb(Tracker):
    """A W&B run, offline in `RUN/wandb` unless W&B is logged in or WANDB_MODE says otherwise."""

    def begin(self, config: dict[str, Any], step: int) -> None:
        """Open the run."""
        import wandb

        self.wandb = wandb.init(
            project=PROJECT,
            name=self.run.resolve().name,
            id=self.identity("wandb"),
            resume="allow",
            dir=str(self.run),
            config=_plain(config),
            settings=wandb.Settings(silent=True),
            mode=None if "WANDB_MODE" in os.environ else "online" if _logged_in() else "offline",
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send figures."""
        self.wandb.log(values, step=step)

    def text(self, prompt: str, reply: str, step: int) -> None:
        """Send the reply."""
        self.wandb.log({"sample": f"{prompt} → {reply}"}, step=step)

    def finish(self) -> None:
        """Close the run."""
        self.wandb.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def open_tracker(name: str, run: str | Path, say: Callable[[str], None]) -> Callback:
    """Return a listener that reports to a tracker; `say` gets a sentence if it fails on the way.

    UserError for an unknown tracker, and where its client is not installed.
    """
    if name not in TRACKERS:
        hint = did_you_mean(name, TRACKERS)
        raise UserError(f"no tracker is named {name!r}; {hint}known: {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--report-to {name} needs its client: pip install 'i3lm[{name}]'")
    return Guarded(name, TRACKERS[name](Path(run)), say)


def _logged_in() -> bool:
    """Whether W&B has a key, in the environment or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _silence() -> contextlib.AbstractContextManager[Any]:
    """Keep a client's words off standard output, which may be JSON."""
    return contextlib.redirect_stdout(io.StringIO())


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    simple = (str, int, float, bool)
    return {k: v if isinstance(v, simple) else str(v) for k, v in config.items()}
