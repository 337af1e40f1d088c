"""The curves of a run in bounded memory, from the rows of metrics.jsonl or of a listener."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_POINTS = 400  # of a curve
MOST_EVALUATIONS = 400
LONGEST_TEXT = 600  # characters of a prompt or a reply
COLUMNS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory")


@dataclass
class Point:
    """Some steps in a row: where they end, and each column's least, sum and greatest."""

    steps: int
    step: int
    tokens: int
    seconds: float
    low: list[float]
    sums: list[float]
    high: list[float]

    def join(self, later: "Point") -> None:
        """Take in the steps that follow."""
        self.steps += later.steps
        self.step, self.tokens, self.seconds = later.step, later.tokens, later.seconds
        self.low = [min(pair) for pair in zip(self.low, later.low, strict=True)]
        self.sums = [a + b for a, b in zip(self.sums, later.sums, strict=True)]
        self.high = [max(pair) for pair in zip(self.high, later.high, strict=True)]


@dataclass
class Evaluation:
    """One look at held-out text."""

    step: int
    tokens: int
    seconds: float
    bits: float  # per character
    prompt: str
    reply: str


@dataclass
class History:
    """All that a report draws, at most `MOST_POINTS` points however long the run is."""

    points: list[Point] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    width: int = 1  # steps of a point
    progress: float = 0.0
    peak: float = 0.0  # bytes
    training_seconds: float = 0.0  # in steps
    evaluation_seconds: float = 0.0

    @property
    def last(self) -> Point | None:
        """The newest point."""
        return self.points[-1] if self.points else None

    @property
    def seconds(self) -> float:
        """Training time until the last row."""
        ends = [part[-1].seconds for part in (self.points, self.evaluations) if part]
        return max(ends, default=0.0)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row; one that is neither a step nor an evaluation is passed over."""
        if "loss" in row:
            self._add_step(row)
        elif "held_out_bits_per_character" in row:
            self._add_evaluation(row)

    def _add_step(self, row: dict[str, Any]) -> None:
        values = [float(row[name]) for name in COLUMNS]
        if not all(map(math.isfinite, values)):
            return
        step, tokens, seconds = int(row["step"]), int(row["tokens"]), float(row["seconds"])
        self._go_back_before(step)
        done = self.points[-1].tokens if self.points else 0
        self.training_seconds += (tokens - done) / max(values[3], 1e-9)
        self.progress = float(row["progress"])
        self.peak = max(self.peak, values[4])
        new = Point(1, step, tokens, seconds, values, [*values], [*values])
        if self.points and self.points[-1].steps < self.width:
            self.points[-1].join(new)
            return
        self.points.append(new)
        if len(self.points) > MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            odd = self.points[-1:] if len(self.points) % 2 else []
            joined = []
            for first, second in pairs:
                first.join(second)
                joined.append(first)
            self.points = [*joined, *odd]
            self.width *= 2

    def _go_back_before(self, step: int) -> None:
        """Drop what a run that went back to a checkpoint has undone."""
        while self.points and self.points[-1].step >= step:
            self.points.pop()
        while self.evaluations and self.evaluations[-1].step >= step:
            self.evaluations.pop()

    def _add_evaluation(self, row: dict[str, Any]) -> None:
        bits, seconds = float(row["held_out_bits_per_character"]), float(row["seconds"])
        if not math.isfinite(bits):
            return
        before = self.points[-1] if self.points else None
        self.evaluation_seconds += max(0.0, seconds - before.seconds) if before else 0.0
        sample = row.get("sample") or {}
        prompt, reply = (str(sample.get(name, ""))[:LONGEST_TEXT] for name in ("prompt", "reply"))
        tokens = before.tokens if before else 0
        self.evaluations.append(Evaluation(int(row["step"]), tokens, seconds, bits, prompt, reply))
        if len(self.evaluations) > MOST_EVALUATIONS:
            self.evaluations = [*self.evaluations[:-1:2], self.evaluations[-1]]

    def samples(self, most: int = 40) -> list[Evaluation]:
        """Return evaluations with replies to show, newest first, spread over the run."""
        found = [evaluation for evaluation in self.evaluations if evaluation.prompt][::-1]
        if len(found) <= most:
            return found
        return [found[i * (len(found) - 1) // (most - 1)] for i in range(most)]

    def curves(self) -> dict[str, Any]:
        """Return lists for the page: axes, means, and lows and highs where points hold steps."""
        curves: dict[str, Any] = {
            "step": [point.step for point in self.points],
            "tokens": [point.tokens for point in self.points],
            "seconds": [_short(point.seconds) for point in self.points],
        }
        for i, name in enumerate(COLUMNS):
            curves[name] = [_short(point.sums[i] / point.steps) for point in self.points]
            if self.width > 1:
                curves[f"{name}_low"] = [_short(point.low[i]) for point in self.points]
                curves[f"{name}_high"] = [_short(point.high[i]) for point in self.points]
        curves["evaluations"] = {
            "step": [e.step for e in self.evaluations],
            "tokens": [e.tokens for e in self.evaluations],
            "seconds": [_short(e.seconds) for e in self.evaluations],
            "bits": [_short(e.bits) for e in self.evaluations],
        }
        return curves


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def read_history(path: Path) -> History:
    """Read metrics.jsonl line by line; half a line at its end, and what is no row, do not count."""
    history = History()
    for row in _rows(path):
        try:
            history.add(row)
        except (KeyError, TypeError, ValueError):
            continue
    return history


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    def rows() -> Iterator[dict[str, Any]]:
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row

    return rows()
