"""Listeners: the terminal, trackers, notebooks, and events as they are documented."""

import io
import json
import typing
from xml.etree import ElementTree

import pytest
from rich.console import Console

from i3lm.errors import UserError
from i3lm.notebook import LivePlot
from i3lm.training import events
from i3lm.training.config import Every
from i3lm.training.events import Guarded, Listener, Several
from i3lm.training.run import train
from i3lm.training.terminal import Curve, TerminalListener, View, sparkline
from i3lm.training.trackers import Tracker, open_tracker


@pytest.fixture(scope="module")
def told(tmp_path_factory, text_file):
    """All that a run of eight steps tells."""
    from i3lm.training.config import TrainConfig

    rows = []
    config = TrainConfig(
        data=(str(text_file),), out=str(tmp_path_factory.mktemp("run") / "run"), preset="i3-tiny",
        vocab_size=400, context=32, batch_tokens=128, steps=8, threads=1, precision="fp32",
        eval_every=Every(steps=4), checkpoint_every=Every(steps=3),
    )  # fmt: skip
    train(config, listener=lambda event, row: rows.append((event, row)))
    return config, rows


def test_rows_are_what_their_types_say(told):
    _, rows = told
    seen = {event for event, _ in rows}
    assert seen == {"prepare", "plan", "start", "step", "evaluation", "checkpoint", "end"}
    for event, row in rows:
        kind = getattr(events, f"{event.title()}Row")
        assert set(kind.__annotations__) <= set(row), event
        if event != "end":
            assert set(row) == set(kind.__annotations__), event
        hints = typing.get_type_hints(kind)
        for name, hint in hints.items():
            if hint in (int, str, bool):
                assert isinstance(row[name], hint), (event, name)


def replay(rows, **console) -> str:
    out = io.StringIO()
    listener = TerminalListener(Console(file=out, highlight=False, **console))
    for event, row in rows:
        listener(event, row)
    listener.note("something → else")
    listener.close()
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_view_fits_its_terminal(told, width, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("i3lm.training.terminal.REDRAW_SECONDS", 0.0)
    monkeypatch.setattr("i3lm.training.terminal.REDRAW_SHARE", 1e9)
    _, rows = told
    text = replay(rows, force_terminal=True, width=width, color_system=None)
    assert "━" in text
    assert "tok/s" in text
    assert "loss" in text
    assert "done:" in text
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    listener = TerminalListener(console)
    for event, row in rows[:-1]:
        listener(event, row)
    lines = console.render_lines(View(listener), pad=False)
    assert 4 <= len(lines) <= 6
    assert all(sum(part.cell_length for part in line) <= width for line in lines)
    listener.close()


@pytest.mark.parametrize("kind", ["pipe", "dumb"])
def test_where_nothing_can_be_redrawn_there_are_plain_lines(told, kind, monkeypatch):
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    text = replay(told[1], force_terminal=kind == "dumb", width=80, color_system=None)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "step 4 (" in text
    assert "note: something" in text


def test_an_ascii_terminal_gets_ascii(told, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")

    class Ascii(io.StringIO):
        encoding = "ascii"

    out = Ascii()
    listener = TerminalListener(Console(file=out, force_terminal=True, width=70))
    for event, row in told[1]:
        listener(event, row)
    listener.close()
    assert out.getvalue().isascii()


def test_a_curve_of_any_length_is_short():
    curve = Curve()
    for number in range(100_000):
        curve.add(float(number))
    assert len(curve.values) <= 480
    assert curve.values == sorted(curve.values)
    assert len(sparkline(curve.values, 30)) == 30
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"


def test_a_listener_that_fails_is_left_out_and_named():
    said, heard = [], []

    def bad(event, row):
        raise OSError("no network")

    both = Several(Guarded("odd", bad, said.append), lambda event, row: heard.append(event))
    for event in ("start", "step", "whatever"):
        both(event, {})
    assert heard == ["start", "step", "whatever"]
    assert said == ["odd failed (no network); training goes on without it"]
    with pytest.raises(UserError):
        Guarded("odd", lambda event, row: (_ for _ in ()).throw(UserError("x")), said.append)(
            "step", {}
        )


def test_an_unknown_event_is_passed_over():
    Listener()("festival", {})


def test_a_missing_client_is_one_line_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'i3lm\[wandb\]'"):
        open_tracker("wandb", tmp_path, print)
    with pytest.raises(UserError, match="did you mean trackio"):
        open_tracker("trackoi", tmp_path, print)


class Recording(Tracker):
    def begin(self, config, step):
        self.rows = [("begin", config["preset"], step)]

    def log(self, values, step):
        self.rows.append(("log", values, step))

    def finish(self):
        self.rows.append(("finish",))


def test_a_tracker_gets_figures_a_few_times_a_second(told):
    from pathlib import Path

    config, rows = told
    tracker = Recording(Path(config.out))
    for event, row in rows:
        tracker(event, row)
    assert tracker.rows[0] == ("begin", "i3-tiny", 0)
    assert tracker.rows[-1] == ("finish",)
    logged = [row[1] for row in tracker.rows if row[0] == "log"]
    assert {"train/loss", "held_out/bits_per_character"} <= set().union(*logged)
    assert tracker.identity("x") == tracker.identity("x")


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_written(told):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from pathlib import Path

    config, rows = told
    said = []
    tracker = open_tracker("tensorboard", config.out, said.append)
    for event, row in rows:
        tracker(event, row)
    assert said == []
    files = list((Path(config.out) / "tensorboard").glob("events*"))
    assert files
    data = b"".join(file.read_bytes() for file in files)
    assert b"held_out/bits_per_character" in data
    assert b"train/loss" in data


def test_the_notebook_plot_is_well_formed(told):
    shown = []
    plot = LivePlot(show=shown.append, every=0.0)
    for event, row in told[1]:
        plot(event, row)
    plot.on_evaluation(
        {"step": 9, "seconds": 9.0, "held_out_bits_per_character": 1.0,
         "sample": {"prompt": "<&>\x00", "reply": "\"'"}}
    )  # fmt: skip
    for text in shown:
        ElementTree.fromstring(text)
    assert len(shown) > 8
    assert "held-out bits" in shown[-1]
    with pytest.raises(UserError, match="notebook"):
        LivePlot()


def test_the_rows_are_json(told):
    json.dumps(told[1])
