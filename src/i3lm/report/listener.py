"""Writes report.html on the way: at the start, at each evaluation and at the end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from i3lm import __version__
from i3lm.files import write_atomic
from i3lm.model.card_i3 import CITATION
from i3lm.report import page as html
from i3lm.report.history import History, read_history
from i3lm.report.page import Run, escape
from i3lm.report.tokens import TokenFacts, token_facts
from i3lm.training.config import DEFAULT_SECONDS, TrainConfig
from i3lm.training.events import (
    Callback,
    EndRow,
    EvaluationRow,
    FailureRow,
    Guarded,
    Listener,
    NoteRow,
    PlanRow,
    Several,
    StartRow,
    StepRow,
)
from i3lm.training.heldout import FINAL_TOKENS, QUICK_TOKENS
from i3lm.units import format_bytes, format_duration

NAME = "report.html"
BEYOND = 1.1  # times the budget of time: more than the last step and the closing figures take
PARTS = {
    "runtime": "Python, torch, code and caches",
    "weights": "weights",
    "gradients": "gradients",
    "states": "optimizer states",
    "activations": "activations, at the peak",
}


class ReportListener(Listener):
    """Follows a run and keeps its report."""

    def __init__(self, run: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.run, self.say = run, say
        self.history = History()
        self.config: dict[str, Any] = {}
        self.start: dict[str, Any] = {}
        self.plan: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.notes: list[str] = []
        self.failed = False
        self.refused = False  # the last time that the page was to be written
        self.facts: TokenFacts | None = None
        self.preparation: float | None = None  # seconds
        self._began = time.monotonic()

    def on_plan(self, row: PlanRow) -> None:
        """Keep what memory was planned."""
        self.plan = dict(row)
        self.preparation = time.monotonic() - self._began

    def on_start(self, row: StartRow) -> None:
        """Read what went before, and write the first page."""
        self.start = dict(row)
        self.config = vars(TrainConfig.load(self.run))
        self.facts = token_facts(self.run / "data")
        if row["step"]:
            self.history = read_history(self.run / "metrics.jsonl")
            self.preparation = None
        self.write()

    def on_step(self, row: StepRow) -> None:
        """Take a step's figures."""
        self.history.add(dict(row))

    def on_evaluation(self, row: EvaluationRow) -> None:
        """Write the page anew."""
        self.history.add(dict(row))
        self.write()

    def on_note(self, row: NoteRow) -> None:
        """Keep the last notes."""
        self.notes = [*self.notes[-19:], row["text"]]

    def on_failure(self, row: FailureRow) -> None:
        """Say why the run ended before its time; `--resume` writes the page anew."""
        self.failed = True
        self.notes = [*self.notes[-19:], row["text"]]
        if self.start:
            self.write()

    def on_end(self, row: EndRow) -> None:
        """Write the last page."""
        self.end = dict(row)
        self.write()

    def write(self) -> None:
        """Write the page; where the disk does not take it, say so, and try again next time."""
        try:
            write_atomic(self.run / NAME, self.render())
        except OSError as error:
            if not self.refused:  # said once, until it goes well again
                self.say(f"{NAME} cannot be written ({error.strerror}); training goes on")
            self.refused = True
        else:
            self.refused = False

    def render(self) -> bytes:
        """Return the page."""
        live = not (self.end or self.failed)
        preset = self.start.get("preset", "i3")
        state = "stopped" if self.end.get("interrupted") else "finished"
        if live:  # a process that is killed cannot correct it
            state = "running when this was written"
        if self.failed:
            state = "ended without finishing"
        when = time.strftime("%Y-%m-%d %H:%M")
        parameters = f"{self.start.get('parameters', 0):,} parameters"
        subtitle = f"{parameters} · {state} · {when} · i3lm {__version__}"
        name = self.run.resolve().name
        sections = [self._summary(), self._budget(), self._samples(), self._tokens()]
        sections += [self._configuration(), html.section("Citation", _citation())]
        return html.page(
            f"{preset}: {name}",
            subtitle,
            [Run(name, self.history, self.config)],
            sections,
            limit=self.config.get("memory"),
            live=live,
        )

    def _summary(self) -> str:
        history, last = self.history, self.history.last
        bits = self.end.get("held_out_bits_per_character")
        if bits is None and history.evaluations:
            bits = history.evaluations[-1].bits
        peak = self.end.get("peak_memory_bytes") or history.peak
        seconds = history.seconds
        figures = [
            ("held-out bits per character", "…" if bits is None else f"{bits:.3f}"),
            ("tokens", f"{last.tokens:,}" if last else "0"),
            ("steps", f"{last.step:,}" if last else "0"),
            ("training time", format_duration(seconds)),
            ("tokens a second", f"{last.tokens / seconds:,.0f}" if last and seconds else "…"),
            ("peak memory", format_bytes(peak) if peak else "…"),
        ]
        share = 1.0 if self.end and not self.end.get("interrupted") else history.progress
        bar = (
            f'<p><progress max="1" value="{share:.4f}" aria-label="Share of the budget"></progress>'
            f'<span class="soft">{escape(self._spent(share))}</span></p>'
            f'<p class="soft">{escape(self._measured())}</p>'
        )
        notes = "".join(f"<p>Note: {escape(note)}</p>" for note in self.notes)
        return html.tiles(figures) + bar + notes

    def _spent(self, share: float) -> str:
        """Say how much of the budget is spent, also of one that was lowered afterwards."""
        asked, seconds = self._budget_words(), self.history.seconds
        steps = self.history.last.step if self.history.last else 0
        beyond = [
            f"{steps:,} steps" if steps > (self.config.get("steps") or steps) else "",
            format_duration(seconds)
            if seconds > BEYOND * (self.config.get("time") or seconds)
            else "",
        ]
        had = " and ".join(filter(None, beyond))
        return f"has had {had}; asked for in the end: {asked}" if had else f"{share:.0%} of {asked}"

    def _measured(self) -> str:
        """Say what the figures of held-out text are figures of."""
        way = f"on the way over its first {QUICK_TOKENS:,} tokens, in the training's precision"
        end = f"at the end over {FINAL_TOKENS:,}, in float32"
        return f"Held-out text is measured {way}, and {end}: the closing figure."

    def _budget_words(self) -> str:
        words = []
        if self.config.get("steps"):
            words.append(f"{self.config['steps']:,} steps")
        if self.config.get("time") or not words:
            words.append(format_duration(self.config.get("time") or DEFAULT_SECONDS))
        return " or ".join(words)

    def _budget(self) -> str:
        history = self.history
        rest = history.seconds - history.training_seconds - history.evaluation_seconds
        spent = [
            ("steps", history.training_seconds),
            ("held-out text", history.evaluation_seconds),
            ("checkpoints, sample replies and the rest", max(0.0, rest)),
        ]
        if self.preparation is not None:
            spent.append(("preparing the text, beside the budget", self.preparation))
        times = html.bar([(name, amount, f"{amount:,.1f} s") for name, amount in spent])
        sizes = [(PARTS[k], self.plan[k], format_bytes(self.plan[k])) for k in PARTS if self.plan]
        limit = self.config.get("memory")
        peak = self.end.get("peak_memory_bytes") or history.peak
        told = [f"planned {format_bytes(self.plan['total'])}"] if self.plan else []
        told += [f"measured {format_bytes(peak)} at the peak"] if peak else []
        told += [f"limit {format_bytes(limit)}"] if limit else []
        memory = f'<p class="soft">{escape(", ".join(told))}</p>' + html.bar(sizes, limit)
        return html.section(
            "Where time and memory went",
            html.columns(f"<p>Time</p>{times}", f"<p>Memory</p>{memory}"),
        )

    def _samples(self) -> str:
        turns = [
            (f"step {sample.step:,} · {sample.bits:.2f} bits", sample.prompt, sample.reply)
            for sample in self.history.samples()
        ]
        return html.section("What it said, newest first", html.talks(turns))

    def _tokens(self) -> str:
        facts = self.facts
        if facts is None:
            return ""
        rows = [
            ("text", facts.description),
            ("documents", f"{facts.documents:,}"),
            ("tokens to train on", f"{facts.train_tokens:,}"),
            ("tokens held out", f"{facts.held_out_tokens:,}"),
            ("vocabulary", f"{facts.vocabulary:,}"),
            ("characters of a token", f"{facts.characters_per_token:.2f}"),
        ]
        kinds = [(name, f"{held:,}", f"{used:.1%}") for name, held, used in facts.kinds]
        chunks = " ".join(
            f'<code title="{share:.2%} of the text">{escape(_visible(chunk))}</code>'
            for chunk, share in facts.common
        )
        return html.section(
            "Text and tokenizer",
            html.columns(
                html.table(rows),
                html.table(kinds, ("tokens", "in the vocabulary", "of the text")),
            ),
            f'<p class="soft">Most frequent chunks (␣ is a space):</p><div class="chunks">{chunks}'
            "</div>",
        )

    def _configuration(self) -> str:
        default = vars(TrainConfig())
        machine = [(name, self.start[name]) for name in ("precision", "threads", "context")]
        asked = [(k, html.words(v)) for k, v in self.config.items() if v != default[k]]
        open_ = [(k, html.words(v)) for k, v in self.config.items() if v == default[k]]
        whole = f"<details><summary>All defaults</summary>{html.table(open_)}</details>"
        left = f'<p class="soft">Set, or planned for this machine</p>{html.table(asked)}'
        right = f'<p class="soft">Used</p>{html.table(machine)}{whole}'
        return html.section("Configuration", html.columns(left, right))


def with_report(run: Path, listener: Callback) -> Callback:
    """Return a listener that also keeps the report of a run; a report that fails is a note."""

    def say(text: str) -> None:
        listener("note", {"text": text})

    return Several(Guarded("the report", ReportListener(run, say), say), listener)


def _citation() -> str:
    return f"<pre>{escape(CITATION.removeprefix('```bibtex').removesuffix('```').strip())}</pre>"


def _visible(chunk: str) -> str:
    return chunk.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
