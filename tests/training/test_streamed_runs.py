"""Runs on a stream of text, as a user starts them."""

from dataclasses import replace
from pathlib import Path

import pytest
from run_helpers import weights

from i3lm.__main__ import main
from i3lm.data import remote
from i3lm.errors import UserError
from i3lm.training.config import Every, TrainConfig
from i3lm.training.metrics import read_metrics
from i3lm.training.run import train


@pytest.fixture
def streamed(small_config, monkeypatch, text_file):
    """A run whose text comes through fsspec, in segments that end on the way."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/talk.txt", b"".join(text_file.read_bytes().splitlines(True)[:60]))
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    yield lambda **changes: small_config(
        **{"data": ("memory://talk.txt",), "stream": 1_200, **changes}
    )
    system.store.clear()


def test_a_stopped_run_goes_on_bit_for_bit(streamed, tmp_path):
    whole = train(streamed(out=str(tmp_path / "whole"), steps=8, eval_every=Every(steps=100)))
    part = streamed(out=str(tmp_path / "part"), steps=8, eval_every=Every(steps=100))
    seen = []

    def stop(event, row):
        if event == "step" and row["step"] == 5:
            import signal

            signal.raise_signal(signal.SIGINT)
        seen.append(event)

    assert train(part, listener=stop).interrupted
    for path in (tmp_path / "part" / "data").glob("segment-*"):
        path.unlink()
    train(TrainConfig.load(tmp_path / "part"), resume=True)
    assert weights(tmp_path / "whole") == weights(tmp_path / "part")
    assert whole.figures["epochs"] >= 0
    assert len(list((tmp_path / "whole" / "data").glob("segment-*.bin"))) in (2, 3)
    with pytest.raises(UserError, match="resume with the run's own"):
        train(replace(TrainConfig.load(tmp_path / "part"), stream=4_000, steps=12), resume=True)


def test_a_lost_source_saves_and_ends_with_one_line(streamed, tmp_path, capsys, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem  # each thread has its own

    config = streamed(steps=400, eval_every=Every(steps=1000))

    def gone(*arguments, **options):
        raise OSError("gone")

    def unplug(event, row):
        if event == "step" and row["step"] == 3:
            monkeypatch.setattr(MemoryFileSystem, "open", gone)

    with pytest.raises(UserError, match=r"memory://talk\.txt: no connection .*OSError: gone"):
        train(config, listener=unplug)
    monkeypatch.undo()
    done = max(row["step"] for row in read_metrics(Path(config.out) / "metrics.jsonl"))
    assert done > 3
    assert main(["train", "--resume", config.out, "--steps", str(done + 2), "--quiet"]) == 0


def test_bad_streams_are_one_line(tmp_path, capsys):
    arguments = ["train", "--out", str(tmp_path / "run"), "--preset", "i3-tiny", "--steps", "1"]
    for more, message in (
        (["--data", "nowhere://a.txt", "--stream"], "no protocol nowhere://"),
        (["--stream", "0MB"], "is no size"),
        (["--data", str(tmp_path / "no.txt"), "--stream", "1MB"], "no such file"),
    ):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("error:") == 1
        assert not (tmp_path / "run").exists()


def test_a_single_document_is_refused_before_training(tmp_path, capsys):
    """Its end is held out, so a stream would leave it out as a whole."""
    text, run = tmp_path / "one.txt", tmp_path / "run"
    text.write_text("".join(f"the {n} birds saw {n * 7 % 10} houses\n" for n in range(900)))
    line = ["train", "--data", str(text), "--documents", "file", "--preset", "i3-tiny"]
    line += ["--steps", "1", "--quiet", "--stream", "10kB", "--out", str(run)]
    assert main(line) == 2
    assert "--documents paragraph" in capsys.readouterr().err
    assert not (run / "run.json").exists()
    assert main([*line, "--documents", "line"]) == 0


def test_another_text_on_the_disk_is_refused_and_leftovers_give_way(small_config, text_file):
    """Files on the disk are held against their checksums, though only a sample of them is kept."""
    text = text_file.read_text()
    other = text_file.parent / "streamed.txt"
    other.write_text(text)
    config = small_config(data=(str(other),), stream=1_200, steps=2)
    data = Path(config.out) / "data"
    (data / "rank-1").mkdir(parents=True)  # of a run that was refused before its first step
    (data / "segment-0.bin").write_bytes(b"old")
    train(config)
    assert not (data / "rank-1").exists()
    other.write_text(text.upper())
    with pytest.raises(UserError, match="changed"):
        train(replace(TrainConfig.load(Path(config.out)), steps=4), resume=True)
