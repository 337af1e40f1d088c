"""The report of a run and the comparison of several."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from i3lm.__main__ import main
from i3lm.files import write_atomic
from i3lm.report.history import MOST_POINTS, History, read_history
from i3lm.report.page import Run, page, section, table, talks
from i3lm.training.config import Every, TrainConfig
from i3lm.training.run import train

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\u202e\ud800"
LINE = "[INST] Hi, I am Anna. [/INST] Hello Anna! <b>Number</b> {0}. [INST] Who? [/INST] Anna, {0}."


def step(number: int, loss: float = 2.0) -> dict:
    return {
        "step": number, "tokens": 128 * number, "seconds": 0.5 * number, "progress": number / 9999,
        "loss": loss, "learning_rate": 0.01, "gradient_norm": 1.0, "tokens_per_second": 320.0,
        "memory": 400_000_000,
    }  # fmt: skip


def evaluation(number: int, bits: float = 1.5, reply: str = "Anna") -> dict:
    return {
        "step": number, "seconds": 0.5 * number + 0.25, "held_out_bits_per_character": bits,
        "sample": {"prompt": "Who?", "reply": reply},
    }  # fmt: skip


def small(folder: Path, **changes) -> TrainConfig:
    text = folder.parent / "talk.txt"
    text.write_text("".join(LINE.format(i) + "\n" for i in range(200)))
    settings = {
        "data": (str(text),), "out": str(folder), "preset": "i3-tiny", "vocab_size": 400,
        "context": 32, "batch_tokens": 128, "steps": 6, "threads": 1, "precision": "fp32",
        "eval_every": Every(steps=2),
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train(small(tmp_path_factory.mktemp("runs") / "run")).folder


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_a_history_of_any_length_is_small_and_right():
    history = History()
    for number in range(1, 10_001):
        history.add(step(number, loss=float(number % 10)))
        if number % 100 == 0:
            history.add(evaluation(number))
    assert len(history.points) <= MOST_POINTS
    assert sum(point.steps for point in history.points) == 10_000
    assert history.last.step == 10_000
    assert sum(point.sums[0] for point in history.points) == pytest.approx(45_000)
    assert history.points[0].low[0] == 0
    assert history.points[0].high[0] == 9
    assert history.training_seconds == pytest.approx(10_000 * 128 / 320)
    assert history.evaluation_seconds == pytest.approx(100 * 0.25)
    assert len(json.dumps(history.curves())) < 150_000


def test_a_run_that_went_back_draws_each_step_once():
    history = History()
    for number in [1, 2, 3, 4, 3, 4, 5]:
        history.add(step(number))
        history.add(evaluation(number, reply=str(number)))
    assert [point.step for point in history.points] == [1, 2, 3, 4, 5]
    assert [e.step for e in history.evaluations] == [1, 2, 3, 4, 5]


def test_rows_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    odd = [
        "[]", "{", '{"loss": "x"}', '{"loss": 1}', '{"note": "x"}',
        json.dumps(step(2, float("nan"))), json.dumps(evaluation(2, float("inf"))),
    ]  # fmt: skip
    path.write_text("\n".join([json.dumps(step(1)), *odd, json.dumps(step(3))[:20]]))
    history = read_history(path)
    assert [point.step for point in history.points] == [1]
    assert history.evaluations == []


def test_text_of_users_and_models_stays_text():
    history = History()
    history.add(step(1))
    history.add(evaluation(1, reply=HOSTILE))
    blocks = [table([(HOSTILE, HOSTILE)]), section(HOSTILE, talks([(HOSTILE, HOSTILE, HOSTILE)]))]
    html = page(HOSTILE, HOSTILE, [Run(HOSTILE, history)], blocks).decode()
    assert html.count("<script") == 2
    assert "<img" not in html
    assert data_of(html)["runs"][0]["name"] == HOSTILE
    assert "default-src 'none'" in html


def test_a_run_leaves_its_report(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    data = data_of(html)
    assert data["runs"][0]["step"] == [1, 2, 3, 4, 5, 6]
    assert data["runs"][0]["evaluations"]["step"] == [2, 4, 6]
    assert not data["live"]
    for words in (
        "i3-tiny", "finished", "What it said", "Where time and memory went", "optimizer states",
        "3 characters", "batch_tokens", "@misc{lorpt2025", "held-out bits per character",
    ):  # fmt: skip
        assert words in html, words
    assert not re.search(r"""(src|href)=|url\(["']?http|@import|fetch\(""", html)
    assert "<b>Number" not in html
    assert len(html) < 500_000


def test_a_resumed_run_draws_all_its_steps(tmp_path):
    config = small(tmp_path / "run", steps=4)
    folder = train(config).folder
    longer = TrainConfig(**{**vars(config), "steps": 8})
    train(longer, resume=True)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert data_of(html)["runs"][0]["step"] == [*range(1, 9)]


def test_a_report_that_cannot_be_written_is_said_and_training_goes_on(tmp_path, monkeypatch):
    def refuse(path, data):
        if Path(path).name == "report.html":
            raise OSError(28, "No space left on device")
        write_atomic(path, data)

    monkeypatch.setattr("i3lm.report.listener.write_atomic", refuse)
    notes = []

    def listen(event, row):
        if event == "note":
            notes.append(row["text"])

    result = train(small(tmp_path / "run", steps=2), listener=listen)
    assert result.figures["steps"] == 2
    assert all("No space left" in note for note in notes)
    assert notes


def test_runs_are_compared(run, tmp_path, capsys):
    other = tmp_path / "other" / "run"
    other.mkdir(parents=True)
    rows = [step(1), evaluation(1, 0.001), step(2)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "compare.html"
    assert main(["compare", str(run), str(other), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[0] == "run"
    assert "0.001" in printed[1]  # the better one first
    names = [r["name"] for r in data_of(out.read_text(encoding="utf-8"))["runs"]]
    assert len(set(names)) == 2
    assert main(["compare", str(run), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["steps"] == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/run"], "holds no run"),
        ([str(n) for n in range(9)], "at most 8"),
        ([], "RUN..."),
    ],
)
def test_mistakes_of_compare_are_one_line(tmp_path, capsys, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the chromium browser")
def test_a_browser_draws_all_curves_and_runs_nothing_else(run, tmp_path):
    html = (run / "report.html").read_text(encoding="utf-8")
    path = tmp_path / "report.html"
    path.write_text(html.replace("<main>", "<main><script>document.title='broken'</script>"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.count("<figure>") == 6
    assert done.stdout.count('class="curve s0"') == 6
    assert "<title>broken" not in done.stdout
