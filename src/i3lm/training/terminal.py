"""What a run says on the terminal: a live view, or plain lines where nothing can be redrawn."""

import itertools
import time
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from i3lm import bare
from i3lm.training.events import (
    EndRow,
    EvaluationRow,
    Listener,
    NoteRow,
    PlanRow,
    PrepareRow,
    StartRow,
    StepRow,
)
from i3lm.units import format_bytes, format_duration

PLAIN_SECONDS = 10.0  # between lines where there is no terminal to redraw
REDRAW_SECONDS = 0.25  # at the least between two drawings
REDRAW_SHARE = 0.01  # of the time may go into drawing
BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=+*#@"  # where the terminal has ASCII alone
POINTS = 240  # of a curve that are kept


class _Console(Console):
    """Falls silent where its reader has left; rich would end the program, and the run with it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TerminalListener(Listener):
    """Listens to a run and prints it to standard error, so that standard output stays clean."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(stderr=True, highlight=False)
        self.redraws = self.console.is_terminal and not self.console.is_dumb_terminal
        self.fancy = not self.console.options.ascii_only
        self._live: Live | None = None
        self._next = 0.0  # when to draw, or print, again
        self._start: StartRow | None = None
        self._plan: PlanRow | None = None
        self._step: StepRow | None = None
        self._sample: tuple[str, str] | None = None
        self._losses = Curve()
        self._bits = Curve()
        self._speed: float | None = None

    def close(self) -> None:
        """Leave the terminal as it was; safe to call at any time."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Tell the user something."""
        self._say(f"note: {text}", "yellow")

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(self._plain(text), style=style), soft_wrap=not self.redraws)

    def _plain(self, text: str) -> str:
        """Return the text as this terminal can show it."""
        if self.fancy:
            return text
        return text.replace("→", "->").replace("…", "...").encode("ascii", "replace").decode()

    def _show(self, view: "Text | View", line: str, important: bool = False) -> None:
        """Redraw the view; without a terminal print the line now and then."""
        now = time.monotonic()
        if self.redraws:
            if now < self._next and not important:
                return
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(view, refresh=True)
            cost = time.monotonic() - now
            self._next = now + max(REDRAW_SECONDS, cost / REDRAW_SHARE)
        elif important or now >= self._next:
            self._next = now + PLAIN_SECONDS
            self._say(line)

    def on_note(self, row: NoteRow) -> None:
        """Print a note."""
        self.note(row["text"])

    def on_prepare(self, row: PrepareRow) -> None:
        """Tell how far the text is."""
        line = f"{row['stage']} the text: {row['share']:.0%}"
        self._show(Text(line), line, important=row["share"] >= 1 and not self.redraws)

    def on_plan(self, row: PlanRow) -> None:
        """Tell what memory goes where."""
        self._plan = row
        limit = f" of {format_bytes(row['limit'])}" if row["limit"] else ""
        process = "python" if bare.installed() else "python, torch"
        self._say(
            f"memory: about {format_bytes(row['total'])}{limit} "
            f"({process} and heap {format_bytes(row['runtime'])}, weights and gradients "
            f"{format_bytes(row['weights'] + row['gradients'])}, optimizer "
            f"{format_bytes(row['states'])}, activations {format_bytes(row['activations'])})"
        )

    def on_start(self, row: StartRow) -> None:
        """Tell what begins."""
        self._start = row
        verb = "training" if row["step"] == 0 else f"going on at step {row['step']:,} with"
        self._say(
            f"{verb} {row['preset']}: {row['parameters']:,} parameters on "
            f"{row['train_tokens']:,} tokens ({row['characters_per_token']:.2f} characters each)",
            "bold",
        )
        self._say(
            f"{row['tokens_per_step']:,} tokens a step in sequences of {row['context']}, "
            f"{row['precision']}, {row['threads']} threads"
        )

    def on_step(self, row: StepRow) -> None:
        """Draw how it goes."""
        self._step = row
        self._losses.add(row["loss"])
        speed = row["tokens_per_second"]
        self._speed = speed if self._speed is None else 0.95 * self._speed + 0.05 * speed
        bits = f"  held-out {self._bits.last:.3f} bits/char" if self._bits.values else ""
        line = (
            f"{row['progress']:4.0%}  step {row['step']:,}  loss {self._losses.smooth:.3f}{bits}  "
            f"{self._speed:,.0f} tok/s  {format_bytes(row['memory'])}  "
            f"{format_duration(time_left(row))} left"
        )
        self._show(View(self), line)

    def on_evaluation(self, row: EvaluationRow) -> None:
        """Print the figure, and a reply."""
        bits, sample = row["held_out_bits_per_character"], row["sample"]
        self._bits.add(bits)
        self._sample = (_one_line(sample["prompt"]), _one_line(sample["reply"]))
        if self.redraws:
            return  # the view shows both
        self._say(
            f"step {row['step']:,} ({format_duration(row['seconds'])}): held-out "
            f"{bits:.3f} bits per character"
        )
        self._say(f"  {self._sample[0]} → {self._sample[1]}")
        self._next = 0.0

    def on_end(self, row: EndRow) -> None:
        """Print what came out."""
        self.close()
        spent = format_duration(row["minutes"] * 60)
        if row["interrupted"]:
            self._say(f"stopped after {spent} at step {row['steps']:,}; all is saved", "bold")
            return
        if self._sample and self.redraws:
            self._say(f"  {self._sample[0]} → {self._sample[1]}", "dim")
        if len(self._bits.values) > 1:
            curve = sparkline(self._bits.values, fancy=self.fancy)
            first, last = self._bits.values[0], self._bits.last
            self._say(f"held-out bits per character {first:.2f} {curve} {last:.2f}")
        self._say(
            f"done: {row['tokens']:,} tokens in {spent} ({row['tokens_per_second']:,.0f} tok/s), "
            f"peak memory {format_bytes(row['peak_memory_bytes'])}, held-out "
            f"{row['held_out_bits_per_character']:.3f} bits per character",  # type: ignore[typeddict-item]
            "bold",
        )


class View:
    """The live view, for any width."""

    def __init__(self, listener: TerminalListener) -> None:
        self.of = listener

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield its lines."""
        width = max(20, options.max_width - 1)
        lines = [self._budget(width), *self._curves(width), self._machine(width)]
        if self.of._sample:
            prompt, reply = self.of._sample
            lines.append(Text(self.of._plain(f"{prompt} →"), style="dim"))
            lines.append(Text(self.of._plain(reply or "(nothing)"), style="italic"))
        for line in lines:
            line.truncate(width, overflow="ellipsis" if self.of.fancy else "crop")
        yield Group(*lines)

    def _budget(self, width: int) -> Text:
        row = self.of._step
        assert row is not None
        words = f" {row['progress']:.0%}  {format_duration(time_left(row))} left"
        room = max(4, width - len(words))
        done = int(room * row["progress"])
        full, empty = ("━", "─") if self.of.fancy else ("#", "-")
        bar = Text(full * done, style="green") + Text(empty * (room - done), style="dim")
        return bar + Text(words)

    def _curves(self, width: int) -> list[Text]:
        pairs = [("loss", self.of._losses), ("bits/char, held out", self.of._bits)]
        lines = []
        for name, curve in pairs:
            if not curve.values:
                continue
            value = f"{curve.smooth if name == 'loss' else curve.last:.3f}"
            wide = width >= 60
            label = f"{name if wide else name.partition(',')[0]:{20 if wide else 10}}"
            room = max(4, width - len(label) - len(value) - 1)
            drawn = sparkline(curve.values, room, self.of.fancy)
            style = "cyan" if name == "loss" else "magenta"
            lines.append(Text(label) + Text(value, style="bold") + Text(f" {drawn}", style=style))
        return lines

    def _machine(self, width: int) -> Text:
        row, plan = self.of._step, self.of._plan
        assert row is not None
        memory = format_bytes(row["memory"])
        limit = plan["limit"] if plan else None
        if limit:
            memory += f" of {format_bytes(limit)}"
        parts = [f"step {row['step']:,}", f"{self.of._speed:,.0f} tok/s", memory]
        more = [f"{row['tokens']:,} tokens", f"rate {row['learning_rate']:.2g}"]
        gap = "  ·  " if self.of.fancy else "  |  "
        for part in more:
            if len(gap.join([*parts, part])) <= width:
                parts.append(part)
        return Text(gap.join(parts) if len(gap.join(parts)) <= width else "  ".join(parts))


class Curve:
    """The values of a curve, at most twice `POINTS` of them: then every two become one."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.smooth = self.last = 0.0
        self._each, self._waiting = 1, [0.0, 0]

    def add(self, value: float) -> None:
        """Take the next value."""
        begun = bool(self.values) or self._waiting[1] > 0
        self.smooth = 0.9 * self.smooth + 0.1 * value if begun else value
        self.last = value
        self._waiting = [self._waiting[0] + value, self._waiting[1] + 1]
        if self._waiting[1] < self._each:
            return
        self.values.append(self._waiting[0] / self._each)
        self._waiting = [0.0, 0]
        if len(self.values) >= 2 * POINTS:
            self.values = [
                (a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)
            ]
            self._each *= 2


def time_left(row: StepRow) -> float:
    """Return the seconds that the rest of the budget takes, from what was spent so far."""
    return row["seconds"] * (1 / row["progress"] - 1) if row["progress"] > 0 else 0.0


def sparkline(values: Sequence[float], width: int | None = None, fancy: bool = True) -> str:
    """Draw values as a line of eight heights; more than `width` of them as their means."""
    if width is not None and len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    span = high - low or 1.0
    bars = BARS if fancy else PLAIN_BARS
    return "".join(bars[min(7, int(8 * (value - low) / span))] for value in values)


def _one_line(text: str, width: int = 100) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
