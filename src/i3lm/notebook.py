"""A live plot of a run in a notebook: `i3lm.train(..., listener=LivePlot())`.

It draws with nothing but text: an SVG picture, which notebooks show and keep.
"""

import html
import time
from collections.abc import Callable, Sequence
from typing import Any

from i3lm.errors import UserError
from i3lm.report.history import History
from i3lm.training.events import EndRow, EvaluationRow, Listener, StepRow
from i3lm.units import format_duration

WIDTH, HEIGHT, LEFT, TOP = 640, 220, 44, 44
INK, LOSS, BITS = "#777777", "#3a6fd8", "#d0621f"


class LivePlot(Listener):
    """Draws loss and held-out bits per character while a run goes on, and the latest reply.

    `show` gets each picture, an SVG text; by default the notebook's output shows the newest.
    `every` are the seconds between two pictures. UserError outside of a notebook.
    """

    def __init__(self, show: Callable[[str], None] | None = None, every: float = 2.0) -> None:
        self.show = show or _display()
        self.every = every
        self.history = History()
        self._next = 0.0

    def on_step(self, row: StepRow) -> None:
        """Draw now and then."""
        self.history.add(dict(row))
        if time.monotonic() >= self._next:
            self._draw()

    def on_evaluation(self, row: EvaluationRow) -> None:
        """Draw at once."""
        self.history.add(dict(row))
        self._draw()

    def on_end(self, row: EndRow) -> None:
        """Draw the last picture."""
        self._draw()

    def _draw(self) -> None:
        self._next = time.monotonic() + self.every
        if self.history.points:
            self.show(picture(self.history))


def picture(history: History) -> str:
    """Return the curves of a run as SVG; there must be a step."""
    last = history.points[-1]
    steps = [float(point.step) for point in history.points]
    losses = [point.sums[0] / point.steps for point in history.points]
    words = [
        f"step {last.step:,}", f"{history.progress:.0%}", format_duration(history.seconds),
        f"{last.tokens / max(history.seconds, 1e-9):,.0f} tokens/s",
    ]  # fmt: skip
    lines = [
        _text(LEFT, 16, "  ·  ".join(words), INK),
        _text(LEFT, 34, f"loss {losses[-1]:.3f}", LOSS),
        _curve(steps, losses, steps[-1], LOSS),
    ]
    if history.evaluations:
        newest = history.evaluations[-1]
        bits = [evaluation.bits for evaluation in history.evaluations]
        at = [float(evaluation.step) for evaluation in history.evaluations]
        lines += [
            _text(LEFT + 110, 34, f"held-out bits per character {bits[-1]:.3f}", BITS),
            _curve(at, bits, steps[-1], BITS),
            _text(LEFT, HEIGHT - 8, f"{newest.prompt} → {newest.reply}"[:96], INK),
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img">{"".join(lines)}</svg>'
    )


def _curve(xs: Sequence[float], ys: Sequence[float], right: float, colour: str) -> str:
    """Draw a curve between its own least and greatest value, both written at its left."""
    low, high = min(ys), max(ys)
    bottom = HEIGHT - 34
    points = " ".join(
        f"{LEFT + x / right * (WIDTH - LEFT - 12):.1f},"
        f"{bottom - (y - low) / ((high - low) or 1) * (bottom - TOP - 8):.1f}"
        for x, y in zip(xs, ys, strict=True)
    )
    up = 0 if colour == LOSS else 13
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        + _text(2, TOP + 12 + up, f"{high:.2f}", colour)
        + _text(2, bottom - 13 + up, f"{low:.2f}", colour)
    )


def _text(x: float, y: float, words: str, colour: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in words)
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" font-family="sans-serif" font-size="12">'
        f"{html.escape(shown)}</text>"
    )


def _display() -> Callable[[str], None]:
    try:
        from IPython import get_ipython
        from IPython.display import SVG, display
    except ImportError:
        raise UserError("LivePlot draws in a notebook; elsewhere give it show=...") from None
    if get_ipython() is None:
        raise UserError("LivePlot draws in a notebook; elsewhere give it show=...")
    handle: Any = None

    def show(text: str) -> None:
        nonlocal handle
        if handle is None:
            handle = display(SVG(text), display_id=True)
        else:
            handle.update(SVG(text))

    return show
