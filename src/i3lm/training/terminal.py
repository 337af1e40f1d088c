"""What a run says on the terminal: one live line, plain lines when it is not a terminal."""

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from i3lm.units import format_bytes, format_duration

PLAIN_SECONDS = 10.0  # between lines where there is no terminal to redraw
BARS = "▁▂▃▄▅▆▇█"


class _Console(Console):
    """Falls silent where its reader has left; rich would end the program, and the run with it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TerminalListener:
    """Listens to a run and prints it to standard error, so that standard output stays clean."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._last_line = 0.0
        self._bits: float | None = None
        self._bits_by_time: list[float] = []
        self._loss: float | None = None
        self._characters_per_token = 1.0

    def __call__(self, event: str, row: dict[str, Any]) -> None:
        """Take one event of `i3lm.training.run.train`."""
        getattr(self, f"_on_{event}")(row)

    def close(self) -> None:
        """Leave the terminal as it was; safe to call at any time."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    def _show(self, line: str, important: bool = False) -> None:
        """Redraw the live line; without a terminal print it now and then."""
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True))
        elif important or time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self._say(line)

    def _on_note(self, row: dict[str, Any]) -> None:
        self._say(f"note: {row['text']}", "yellow")

    def _on_prepare(self, row: dict[str, Any]) -> None:
        self._show(f"{row['stage']} the text: {row['share']:.0%}", important=row["share"] >= 1)

    def _on_plan(self, row: dict[str, Any]) -> None:
        limit = f" of {format_bytes(row['limit'])}" if row["limit"] else ""
        self._say(
            f"memory: about {format_bytes(row['total'])}{limit} "
            f"(python and torch {format_bytes(row['runtime'])}, weights and gradients "
            f"{format_bytes(row['weights'] + row['gradients'])}, optimizer "
            f"{format_bytes(row['states'])}, activations {format_bytes(row['activations'])})"
        )

    def _on_start(self, row: dict[str, Any]) -> None:
        self._characters_per_token = row["characters_per_token"]
        verb = "training" if row["step"] == 0 else f"going on at step {row['step']:,} with"
        self._say(
            f"{verb} {row['preset']}: {row['parameters']:,} parameters on "
            f"{row['train_tokens']:,} tokens ({self._characters_per_token:.2f} characters each)",
            "bold",
        )
        self._say(
            f"{row['tokens_per_step']:,} tokens a step in sequences of {row['context']}, "
            f"{row['precision']}, {row['threads']} threads"
        )

    def _on_step(self, row: dict[str, Any]) -> None:
        loss = row["loss"]
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        bits = "" if self._bits is None else f"  held-out {self._bits:.3f} bits/char"
        left = row["seconds"] * (1 / row["progress"] - 1) if row["progress"] > 0 else 0.0
        self._show(
            f"{row['progress']:4.0%}  step {row['step']:,}  loss {self._loss:.3f}{bits}  "
            f"{row['tokens_per_second']:,.0f} tok/s  {format_bytes(row['memory'])}  "
            f"{format_duration(left)} left"
        )

    def _on_evaluation(self, row: dict[str, Any]) -> None:
        self._bits = row["held_out_bits_per_character"]
        self._bits_by_time.append(self._bits)
        self._say(
            f"step {row['step']:,} ({format_duration(row['seconds'])}): held-out "
            f"{self._bits:.3f} bits per character",
            "cyan",
        )
        sample = row["sample"]
        self._say(f"  {_one_line(sample['prompt'])} → {_one_line(sample['reply'])}", "dim")

    def _on_checkpoint(self, row: dict[str, Any]) -> None:
        self._last_line = 0.0

    def _on_end(self, row: dict[str, Any]) -> None:
        self.close()
        spent = format_duration(row["minutes"] * 60)
        if row["interrupted"]:
            self._say(f"stopped after {spent} at step {row['steps']:,}; all is saved", "bold")
            return
        if len(self._bits_by_time) > 1:
            curve = sparkline(self._bits_by_time)
            first, last = self._bits_by_time[0], self._bits_by_time[-1]
            self._say(f"held-out bits per character {first:.2f} {curve} {last:.2f}")
        self._say(
            f"done: {row['tokens']:,} tokens in {spent} ({row['tokens_per_second']:,.0f} tok/s), "
            f"peak memory {format_bytes(row['peak_memory_bytes'])}, held-out "
            f"{row['held_out_bits_per_character']:.3f} bits per character",
            "bold",
        )


def sparkline(values: list[float]) -> str:
    """Draw values as a line of eight heights, from the least to the greatest."""
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(BARS[min(7, int(8 * (value - low) / span))] for value in values)


def _one_line(text: str, width: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
