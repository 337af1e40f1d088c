"""The one training loop."""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from i3lm.data import Corpus
from i3lm.data.segments import SourceLost
from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.optim import learning_rate_factor, make_optimizer
from i3lm.training import hardware
from i3lm.training.checkpoint import Counters, list_checkpoints, set_aside
from i3lm.training.config import Every, TrainConfig
from i3lm.training.dropping import Dropping
from i3lm.training.hardware import NO_MEMORY, resident_bytes, to_device, undisturbed_steps
from i3lm.training.metrics import MetricsFile
from i3lm.training.parallel import Alone, Diverged, Interrupted
from i3lm.training.planning import require_time
from i3lm.training.signals import caught
from i3lm.training.stopwatch import Clock, Stopwatch
from i3lm.units import format_bytes

CHECKPOINT_SECONDS = 60.0
EVALUATIONS = 10  # of a run
RATE_CUTS = 3  # a run whose loss explodes goes back, at half the rate, so many times
EXPLODED = 2.0  # times the loss of guessing, ln(vocabulary) nats a token
MICROBATCH_TOKENS = 1024  # elsewhere many more, which fill a GPU and fit one of 8 GB
DEVICE_MICROBATCH_TOKENS = 16_384


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
        group: Alone | None = None,
    ) -> None:
        self.config, self.network, self.device = config, network, device
        self.group = group or Alone()
        self.run = Path(config.out)
        self.context = network.config.max_position_embeddings
        corpus.require(self.context)
        parameters = self.group.prepare(network)
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
            torch.set_float32_matmul_precision("high")  # TF32: finer than bf16, as fast
        network.model.set_gradient_checkpointing(config.gradient_checkpointing or "none")
        self.sequences = max(1, round(config.batch_tokens / self.context))
        at_once = MICROBATCH_TOKENS if device.type == "cpu" else DEVICE_MICROBATCH_TOKENS
        wanted = config.microbatch or max(1, at_once // self.context)
        self.microbatch = min(wanted, self.sequences)
        self.loader = corpus.loader(
            self.context, self.sequences, config.seed, wait=self.heed_signals
        )
        once = None if config.stream else len(corpus.train)
        self.dropping = Dropping(config, network.config, once, device)
        self.counters = Counters()
        self.group.adopt(network, self.optimizer)
        chief = self.group.chief
        self.metrics = MetricsFile(self.run / "metrics.jsonl" if chief else Path(os.devnull))
        self._peak = 0  # bytes that were seen and answered
        self._returns = bool(config.return_memory)
        self._stop = False
        self.stopwatch = Stopwatch()

    def resume(self) -> list[str]:
        """Go on from the newest sound checkpoint; return sentences on what was passed over."""
        (found,) = self.group.from_chief(len(list_checkpoints(self.run)))
        if not found:  # killed before the first one
            self.metrics.truncate(0)
            self.spread()
            return [f"{self.run} has no checkpoint yet; the run begins anew"]
        return self._return_to_newest()

    def _return_to_newest(self) -> list[str]:
        notes: list[str] = []
        if self.group.chief:
            self.counters, notes = self.group.load(self.run)
            set_aside(self.run, self.counters.step)
            self.metrics.truncate(self.counters.metrics_bytes)
        self.spread()
        return notes

    def spread(self) -> None:
        """Begin, or begin again, at the chief's weights, states and counters."""
        counters = self.group.from_chief(*map(float, astuple(self.counters)))
        kinds = (type(value) for value in astuple(self.counters))
        self.counters = Counters(*(kind(x) for kind, x in zip(kinds, counters, strict=True)))
        self.group.spread()

    def close(self) -> None:
        """End what runs beside the training, and close its file."""
        self.stopwatch.stop()
        self.metrics.close()
        self.loader.close()

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
        # The pieces of fsdp go back to the system.
        keep = not self.config.return_memory and self.config.parallel != "fsdp"
        with undisturbed_steps(keep):
            yield from self._steps()

    def _steps(self) -> Iterator[dict]:
        self.group.attend()
        self.stopwatch.start(self.counters.seconds)
        evaluation = Clock(self.config.eval_every, self._default_evaluation())
        checkpoint = Clock(self.config.checkpoint_every, Every(seconds=CHECKPOINT_SECONDS))
        for clock in (evaluation, checkpoint):
            clock.start(self.counters.step, self.seconds)
        while (progress := self._agreed_progress()) < 1.0:
            if note := self.dropping.foresee(progress, self.counters.tokens):
                yield {"note": note}
            try:
                row = self.step(progress)
            except Diverged as error:
                yield {"note": self._go_back(str(error))}
                for clock in (evaluation, checkpoint):
                    clock.start(self.counters.step, self.seconds)
                continue
            except Torn:
                self._require_alone(NO_MEMORY)
                yield {"note": self._mend()}
                continue
            except SourceLost:
                if self.group.chief and self.group.keeps(self.counters.step):
                    self.save()
                raise
            except (MemoryError, RuntimeError) as error:
                if not hardware.is_out_of_memory(error):
                    raise
                self._require_alone(NO_MEMORY)
                yield {"note": self._take_less(NO_MEMORY)}
                continue
            row["evaluate"], row["checkpoint"] = self._due(evaluation, checkpoint)
            yield row
            self.group.attend()
            if note := self.group.slow():
                yield {"note": note}
            if self.group.launch.size == 1:  # several stop together, in a step
                self.heed_signals()

    def _agreed_progress(self) -> float:
        """Return the progress as the chief sees it; between exchanges nobody ends."""
        if self.group.together(self.counters.step):
            return self.group.from_chief(self.progress)[0]
        return min(self.progress, 1 - 1e-9)

    def _due(self, *clocks: Clock) -> list[bool]:
        """Say for each clock whether the chief's strikes, where all hold the same weights."""
        step = self.counters.step
        if not self.group.together(step):
            return [False for _ in clocks]
        return list(map(bool, self.group.from_chief(*(c.due(step, self.seconds) for c in clocks))))

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
            norm = self.group.clip(self.config.clip)
            try:
                self._require_sound(loss, norm)
            except Diverged as error:
                self.network.zero_grad()
                self.group.defer(error)
        except BaseException:
            self.network.zero_grad()
            raise
        try:
            self.group.update(factor)
        except (MemoryError, RuntimeError) as error:
            self.network.zero_grad()
            if not hardware.is_out_of_memory(error):
                raise
            raise Torn from error
        self.network.zero_grad()
        tokens = self.sequences * self.context
        self.counters.step += 1
        self.group.stepped(self.counters.step)
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
        (found,) = self.group.from_chief(len(list_checkpoints(self.run)))
        if not found:
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
        why = f"the process took {format_bytes(peak)} of {format_bytes(limit)}"
        hardware.give_back_freed()
        if not self._returns:
            self._returns = True
            hardware.return_freed_memory()
            return f"{why}; from now on it returns freed memory at once, which is slower"
        return self._take_less(why)

    def _require_alone(self, why: str) -> None:
        """Refuse to repeat a step by itself where others have gone on with it."""
        if self.group.launch.size > 1:
            raise UserError(
                f"{why}; all stop: go on with a smaller --microbatch, or fewer processes a machine"
            )

    def _take_less(self, why: str) -> str:
        """Halve the microbatch, then checkpoint fully: the same steps, in smaller pieces."""
        if self.microbatch > 1:
            self.microbatch //= 2
            return f"{why}; it goes on with a microbatch of {self.microbatch}"
        if self.network.model.checkpointing != "full":
            self.network.model.set_gradient_checkpointing("full")
            return f"{why}; it goes on with full gradient checkpointing"
        if self.group.chief:
            self.save()
        saved = self.group.chief or self.group.keeps(self.counters.step)
        what = "all is saved" if saved else "the last checkpoint is sound"
        raise UserError(
            f"{why}; {what}, go on with more: i3lm train --resume {self.run} --memory ..."
        )

    def _accumulate_gradients(self) -> float:
        """Add up the gradients of one step's sequences; return their mean loss in nats a token."""
        begun = time.perf_counter()
        loss = self._gradients()
        step, seconds = self.counters.step + 1, time.perf_counter() - begun
        mean = self.group.settle(step, float(loss), self._stop, seconds)
        self.group.add_gradients()
        return mean

    def _gradients(self) -> Tensor:
        """Add up the gradients of this process's sequences; return their share of the mean loss.

        It ends early where training was asked to stop.
        """
        total = torch.zeros((), device=self.device)  # read at the end: a GPU need not be waited for
        start, mine = self.group.share(self.sequences)
        count = self.group.divisor(self.sequences) * self.context
        first = self.counters.step * self.sequences + start
        began, begin = list[float](), 0
        while self.group.passes(begin < mine, self._stop):
            if self.counters.step == 0 and self.group.launch.size == 1:
                began.append(time.monotonic())
                require_time(self.config, began, self.microbatch, self.context)
            size, sample = min(self.microbatch, mine - begin), first + begin
            rows = self._windows(sample, size)
            begin += size
            if rows is None:
                self.group.accompany()
                continue
            dropout = self.dropping.of_layers(sample, size)
            rows = self.dropping.hide(rows[0], sample), rows[1]
            inputs, targets = (to_device(part, self.device) for part in rows)
            total += self.network.accumulate(inputs, targets, 1 / count, dropout, self.autocast)
        return total

    def _windows(self, sample: int, count: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return inputs and targets of `count` samples; None for none, or once told to stop."""
        if count == 0:
            return None
        try:
            rows = self.loader.windows(sample, count)
        except Interrupted:
            return None
        self._require_tokens(rows, sample)
        return rows

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
        self.group.save(self.run, self.counters)

    @torch.no_grad()
    def _require_sound_weights(self) -> None:
        """Refuse weights that the last update has ruined: the next step would only then find out,
        and go back to them."""
        if self.counters.step == 0:
            return
        newest = self.counters.step * self.sequences - 1  # at hand, where the next may not be
        try:
            rows = self.loader.windows(newest, 1)
        except Interrupted:  # a resumed stream is not yet at hand, nor has a step been made
            return
        inputs, targets = (to_device(part, self.device) for part in rows)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = float(self.network.loss(inputs, targets)) / self.context
            self._require_sound(loss, 0.0)
        except Diverged as error:
            raise UserError(f"no checkpoint of step {self.counters.step}: {error}") from None
        except (MemoryError, RuntimeError) as error:
            if not hardware.is_out_of_memory(error):
                raise
            raise UserError(f"no checkpoint of step {self.counters.step}: {NO_MEMORY}") from None

    def heed_signals(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._stop:
            raise Interrupted

    def signals(self) -> contextlib.AbstractContextManager[None]:
        """Turn the first of SIGNALS into a request to stop; a second one acts at once."""
        return caught(self._ask_to_stop)

    def _ask_to_stop(self) -> None:
        self._stop = True
