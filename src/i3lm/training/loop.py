"""The one training loop."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor

from i3lm.data import Corpus
from i3lm.data.segments import SourceLost
from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.optim import clip_gradients, learning_rate_factor, make_optimizer
from i3lm.training.checkpoint import (
    Counters,
    list_checkpoints,
    load_newest,
    save_checkpoint,
    set_aside,
)
from i3lm.training.config import Every, TrainConfig
from i3lm.training.halves import Halves
from i3lm.training.hardware import resident_bytes, to_device
from i3lm.training.metrics import MetricsFile
from i3lm.training.stopwatch import Stopwatch
from i3lm.units import format_bytes, format_duration

CHECKPOINT_SECONDS = 60.0
NO_MEMORY = "the system gives no more memory"
EVALUATIONS = 10  # of a run
RATE_CUTS = 3  # a run whose loss explodes goes back, at half the rate, so many times
EXPLODED = 2.0  # times the loss of guessing, ln(vocabulary) nats a token
MICROBATCH_TOKENS = 1024  # elsewhere many more, which fill a GPU and fit one of 8 GB
DEVICE_MICROBATCH_TOKENS = 16_384
SURE_SECONDS = 1.0  # of microbatches, before anything is said of a step's time
STEPS_AT_LEAST = 10  # that a run should have, where a number of tokens is proposed
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupted(Exception):
    """Training was asked to stop; it stands between two steps."""


class Diverged(Exception):
    """The loss or its gradient is not finite, or the loss has exploded; says which."""


class Torn(Exception):
    """The memory ran out within an update: some parameters have taken it, others have not."""


class Trainer:
    """Trains a network on a corpus within a budget of steps or seconds.

    All that happens is a pure function of the configuration and the counters, so that a run
    which goes on from a checkpoint is the run that would have been.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        network: I3Network,
        precision: str,
        device: torch.device,
    ) -> None:
        self.config, self.network, self.device = config, network, device
        self.run = Path(config.out)
        self.context = network.config.max_position_embeddings
        corpus.require(self.context)
        parameters = network.named_parameters()
        self.optimizer = make_optimizer(
            config.optimizer, parameters, config.lr, config.state_bits or 32
        )
        few = config.qat_bits or config.weight_bits
        if few != 32:
            if device.type != "cpu":
                raise UserError(
                    "--weight-bits and --qat-bits are for --device cpu; leave them away"
                )
            network.model.store(few, config.seed, master=config.qat_bits is not None)
        if device.type == "cuda" if config.compile is None else config.compile:
            network.model.compile_layers()
        self.autocast = precision == "bf16"
        if self.autocast and device.type == "cuda":
            torch.set_float32_matmul_precision(
                "high"
            )  # TF32: finer than bf16, fast on tensor cores
        network.model.set_gradient_checkpointing(config.gradient_checkpointing or "none")
        self.sequences = max(1, round(config.batch_tokens / self.context))
        at_once = MICROBATCH_TOKENS if device.type == "cpu" else DEVICE_MICROBATCH_TOKENS
        wanted = config.microbatch or max(1, at_once // self.context)
        self.microbatch = min(wanted, self.sequences)
        self.loader = corpus.loader(
            self.context, self.sequences, config.seed, wait=self.heed_signals
        )
        self.counters = Counters()
        self.metrics = MetricsFile(self.run / "metrics.jsonl")
        self._halves = self._make_halves()
        self._reading = threading.Lock()  # a loader may have one reader at a time
        self._peak = 0  # bytes that were seen and answered
        self._stop = False
        self.stopwatch = Stopwatch()

    def _make_halves(self) -> Halves | None:
        """Where there are cores for two halves, and memory for a second set of gradients: none
        of the means to save memory is in use."""
        c, threads = self.config, torch.get_num_threads()
        whole = (c.qat_bits or c.weight_bits, c.state_bits or 32) == (32, 32)
        if not whole or (c.gradient_checkpointing or "none") != "none":
            return None
        if self.device.type != "cpu" or c.memory is not None or c.return_memory:
            return None
        return Halves(self.network, threads) if min(threads, self.microbatch) > 1 else None

    def resume(self) -> list[str]:
        """Go on from the newest sound checkpoint; return sentences on what was passed over."""
        if not list_checkpoints(self.run):  # killed before the first one
            self.metrics.truncate(0)
            return [f"{self.run} has no checkpoint yet; the run begins anew"]
        return self._return_to_newest()

    def _return_to_newest(self) -> list[str]:
        self.counters, notes = load_newest(self.run, self.network, self.optimizer)
        set_aside(self.run, self.counters.step)
        self.metrics.truncate(self.counters.metrics_bytes)
        return notes

    def close(self) -> None:
        """End what runs beside the training, and close its file."""
        self.stopwatch.stop()
        self.metrics.close()
        self.loader.close()
        self._join_halves()

    def _join_halves(self) -> None:
        if self._halves:
            self._halves.close()
        self._halves = None

    @property
    def seconds(self) -> float:
        """Training time used so far, over all starts, without stretches of standing still."""
        return self.stopwatch.seconds

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, 0 to 1."""
        shares = [0.0]
        if self.config.steps:
            shares.append(self.counters.step / self.config.steps)
        if self.config.seconds:
            shares.append(self.seconds / self.config.seconds)
        return min(1.0, max(shares))

    @property
    def spent(self) -> bool:
        """Whether the budget was spent before this start."""
        steps, seconds = self.config.steps, self.config.seconds
        counters = self.counters
        return bool((steps and counters.step >= steps) or (seconds and counters.seconds >= seconds))

    def train(self) -> Iterator[dict]:
        """Train until the budget is spent; yield a row of figures after each step.

        A row has `step`, `tokens`, `seconds`, `progress`, `loss` (nats a token), `learning_rate`
        (of the matrices), `gradient_norm`, `tokens_per_second`, `memory` (resident bytes), and
        `evaluate` and `checkpoint`: whether it is time for these. Where training had to go back to
        its last checkpoint, or could not have its memory, a row with nothing but `note` says so.
        Raises Interrupted after a first signal (see `signals`), within a microbatch.
        """
        self.stopwatch.start(self.counters.seconds)
        evaluation = _Clock(self.config.eval_every, self._default_evaluation())
        checkpoint = _Clock(self.config.checkpoint_every, Every(seconds=CHECKPOINT_SECONDS))
        for clock in (evaluation, checkpoint):
            clock.start(self.counters.step, self.seconds)
        while (progress := self.progress) < 1.0:
            try:
                row = self.step(progress)
            except Diverged as error:
                yield {"note": self._go_back(str(error))}
                for clock in (evaluation, checkpoint):
                    clock.start(self.counters.step, self.seconds)
                continue
            except Torn:
                yield {"note": self._mend()}
                continue
            except SourceLost:
                self.save()
                raise
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                yield {"note": self._take_less(NO_MEMORY)}
                continue
            row["evaluate"] = evaluation.due(self.counters.step, self.seconds)
            row["checkpoint"] = checkpoint.due(self.counters.step, self.seconds)
            yield row
            self.heed_signals()

    def _default_evaluation(self) -> Every:
        if self.config.steps:
            return Every(steps=max(1, self.config.steps // EVALUATIONS))
        assert self.config.seconds is not None
        return Every(seconds=self.config.seconds / EVALUATIONS)

    def step(self, progress: float) -> dict:
        """Take one optimizer step at this share of the budget; return the row of `train`."""
        begin = time.monotonic()
        factor = learning_rate_factor(
            progress, self.counters.step, warmup_steps=self.config.warmup_steps
        )
        factor *= 0.5**self.counters.rate_cuts
        try:
            loss = self._accumulate_gradients()
            norm = clip_gradients(self.network.parameters(), self.config.clip)
            self._require_sound(loss, norm)
        except BaseException:
            self.optimizer.zero_grad()
            raise
        try:
            self.optimizer.step(factor)
        except (MemoryError, RuntimeError) as error:
            self.optimizer.zero_grad()
            if not _out_of_memory(error):
                raise
            raise Torn from error
        self.optimizer.zero_grad()
        tokens = self.sequences * self.context
        self.counters.step += 1
        self.counters.tokens += tokens
        return {
            "step": self.counters.step,
            "tokens": self.counters.tokens,
            "seconds": round(self.seconds, 3),
            "progress": self.progress,
            "loss": loss,
            "learning_rate": factor * self.optimizer.groups[0].lr,
            "gradient_norm": norm,
            "tokens_per_second": tokens / (time.monotonic() - begin),
            "memory": resident_bytes()[0],
        }

    def _require_sound(self, loss: float, norm: float) -> None:
        step = self.counters.step
        limit = EXPLODED * math.log(self.network.config.vocab_size)
        exploded = loss > limit and step >= self.config.warmup_steps
        if math.isfinite(loss) and math.isfinite(norm) and not exploded:
            return
        first = step * self.sequences
        raise Diverged(
            f"the loss became {loss:.4g} (gradient norm {norm:.4g}) at step {step}, "
            f"samples {first} to {first + self.sequences - 1}"
        )

    def _go_back(self, reason: str) -> str:
        """Return to the newest sound checkpoint with half the rate; return what was done."""
        cuts = self.counters.rate_cuts + 1
        lower = self.optimizer.groups[0].lr * 0.5**cuts
        if not list_checkpoints(self.run):
            raise UserError(
                f"{reason}, before the first checkpoint; start again with --lr {lower:.2g}"
            )
        if cuts > RATE_CUTS:
            raise UserError(
                f"{reason}, though the rate was halved {RATE_CUTS} times; the newest checkpoint is "
                f"sound: i3lm train --resume {self.run} --lr {lower:.2g}"
            )
        notes = self._return_to_newest()
        self.counters.rate_cuts = cuts
        what = f"{reason}; back to step {self.counters.step}, at half the rate"
        self.metrics.write({"step": self.counters.step, "note": what})
        return "; ".join([what, *notes])

    def _mend(self) -> str:
        """Return to the newest checkpoint after a torn update, and need less from then on."""
        if not list_checkpoints(self.run):
            raise UserError(f"{NO_MEMORY} and there is no checkpoint yet; free some, start again")
        cuts = self.counters.rate_cuts
        self._return_to_newest()
        self.counters.rate_cuts = cuts
        return self._take_less(f"{NO_MEMORY} for an update; back to step {self.counters.step}")

    def keep_memory(self) -> str | None:
        """Where the process took more than its limit, take less from now on; return what was done.

        Raises UserError, with all saved, where nothing is left to give up.
        """
        limit, peak = self.config.memory, resident_bytes()[1]
        if limit is None or peak <= max(limit, self._peak):
            return None
        self._peak = peak
        return self._take_less(f"the process took {format_bytes(peak)} of {format_bytes(limit)}")

    def _take_less(self, why: str) -> str:
        """Halve the microbatch, then checkpoint fully: the same steps, in smaller pieces."""
        self._join_halves()
        if self.microbatch > 1:
            self.microbatch //= 2
            return f"{why}; it goes on with a microbatch of {self.microbatch}"
        if self.network.model.checkpointing != "full":
            self.network.model.set_gradient_checkpointing("full")
            return f"{why}; it goes on with full gradient checkpointing"
        self.save()
        raise UserError(
            f"{why}; all is saved, go on with more: i3lm train --resume {self.run} --memory ..."
        )

    def _accumulate_gradients(self) -> float:
        """Add up the gradients of one step's sequences; return their mean loss in nats a token."""
        self.heed_signals()
        if self._halves:
            return float(self._halves.run(lambda network, half: self._gradients(network, half, 2)))
        return float(self._gradients(self.network, 0, 1))

    def _gradients(self, network: I3Network, part: int, parts: int) -> Tensor:
        """Add up the gradients of one part of each microbatch; return the part's share of the
        loss."""
        total = torch.zeros((), device=self.device)  # read at the end: a GPU need not be waited for
        count = self.sequences * self.context
        first = self.counters.step * self.sequences
        began: list[float] = []
        for begin in range(0, self.sequences, self.microbatch):
            self.heed_signals()
            if self.counters.step == 0:
                began.append(time.monotonic())
                self._require_time(began)
            size = min(self.microbatch, self.sequences - begin)
            here, end = (begin + size * k // parts for k in (part, part + 1))
            if here == end:
                continue
            with self._reading:
                rows = self.loader.windows(first + here, end - here)
            self._require_tokens(rows, first + here)
            inputs, targets = (to_device(half, self.device) for half in rows)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = network.loss(inputs, targets) / count
            loss.backward()
            total += loss.detach()
        return total

    def _require_time(self, began: list[float]) -> None:
        """Refuse a first step that would take longer than the whole run; `began`: microbatches.

        The first of them, which loads code, does not count, nor do the first seconds.
        """
        if self.config.seconds is None or len(began) < 3 or began[-1] - began[0] < SURE_SECONDS:
            return
        each = (began[-1] - began[1]) / (len(began) - 2)
        whole = each * self.sequences / self.microbatch
        if whole > self.config.seconds:
            most = (
                int(self.config.seconds / each) * self.microbatch * self.context // STEPS_AT_LEAST
            )
            limit = format_duration(self.config.seconds)
            raise UserError(
                f"--batch-tokens {self.config.batch_tokens:,}: a step would take about "
                f"{format_duration(whole)}, and --time is {limit}; name "
                f"{max(self.context, most):,} or fewer"
            )

    def _require_tokens(self, rows: tuple[np.ndarray, np.ndarray], sample: int) -> None:
        """Refuse ids that no vocabulary has: of a token file that changed after it was checked."""
        most = max(int(part.max()) for part in rows)
        if most >= self.network.config.vocab_size:
            raise UserError(
                f"token {most} at sample {sample} is beyond the vocabulary of "
                f"{self.network.config.vocab_size:,}: {self.run / 'data'} was changed while it was "
                f"read; i3lm train --resume {self.run} checks it"
            )

    def save(self) -> None:
        """Write a checkpoint of this moment; UserError where its loss is not sound, or no room."""
        self._require_sound_weights()
        self.counters.seconds = self.seconds
        try:
            self.counters.metrics_bytes = self.metrics.flush()
        except OSError as error:
            raise UserError(f"{self.metrics.path} cannot be written: {error.strerror}") from None
        save_checkpoint(self.run, self.network, self.optimizer, self.counters)

    @torch.no_grad()
    def _require_sound_weights(self) -> None:
        """Refuse weights that the last update has ruined: the next step would only then find out,
        and go back to them."""
        if self.counters.step == 0:
            return
        newest = self.counters.step * self.sequences - 1  # at hand, where the next may not be
        inputs, targets = (to_device(rows, self.device) for rows in self.loader.windows(newest, 1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = float(self.network.loss(inputs, targets)) / self.context
        try:
            self._require_sound(loss, 0.0)
        except Diverged as error:
            raise UserError(f"no checkpoint of step {self.counters.step}: {error}") from None

    def heed_signals(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._stop:
            raise Interrupted

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn the first of SIGNALS into a request to stop; a second one acts at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._stop = True
            signal.signal(number, old[signal.Signals(number)])

        old = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: not to be heard
                    old[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _out_of_memory(error: BaseException) -> bool:
    """Whether the system refused memory; torch's allocator says so in a RuntimeError."""
    refused = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return refused or "can't allocate memory" in str(error)


class _Clock:
    """Tells when something is due, every so many steps or seconds."""

    def __init__(self, every: Every | None, default: Every) -> None:
        self.every = every or default
        self._next = 0.0

    def start(self, step: int, seconds: float) -> None:
        interval = self.every.steps or self.every.seconds
        assert interval is not None
        now = step if self.every.steps else seconds
        self._interval, self._next = interval, (now // interval + 1) * interval

    def due(self, step: int, seconds: float) -> bool:
        now = step if self.every.steps else seconds
        if now < self._next:
            return False
        self._next = (now // self._interval + 1) * self._interval
        return True
