"""Two machines on a slow and lossy link, and one that is cut off: network namespaces."""

import socket
import subprocess
import time

import pytest

from i3lm.training.checkpoint import list_checkpoints

links = pytest.importorskip("benchmarks.links")
SMALL = (
    *("--preset", "i3-tiny", "--vocab-size", "400", "--context", "32", "--batch-tokens", "64"),
    *("--precision", "fp32", "--threads", "1", "--eval-every", "100000", "--quiet"),
)


@pytest.fixture
def slow_link():
    try:
        with links.namespaces(delay=0.005, loss=0.001):
            yield
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")


def test_a_machine_that_is_cut_off(slow_link, text_file, tmp_path):
    """Both ends say so once the timeout is over; the first has all saved."""
    outs = [tmp_path / "first", tmp_path / "second"]
    words = (*SMALL, "--data", str(text_file), "--steps", "100000", "--checkpoint-every", "3")
    # A way to have twenty seconds of silence, and bytes sent by DiLoCo in 4 bits before.
    words += ("--ddp-timeout", "20s", "--parallel", "diloco", "--sync-every", "3")
    children = [links.begin(n, *words, "--out", str(outs[n])) for n in (0, 1)]
    end = time.monotonic() + 100
    while not list_checkpoints(outs[0]) and time.monotonic() < end:
        assert all(child.poll() is None for child in children)
        time.sleep(0.1)
    links.command("ip", "-n", links.SECOND, "link", "set", links.DEVICE, "down")
    began = time.monotonic()
    said = []
    for child in children:
        _, errors = child.communicate(timeout=250)
        assert child.returncode == 1
        said.append([line for line in errors.splitlines() if line.startswith("error: ")])
    assert time.monotonic() - began < 200
    host = socket.gethostname()
    assert len(said[0]) == len(said[1]) == 1, said
    assert f"process 1 on {host} does not answer" in said[0][0]
    assert "it is cut off from process 0" in said[1][0]
    assert not (outs[1] / "run.json").exists()
    assert list_checkpoints(outs[0])


def test_each_machine_makes_the_same_text_or_is_refused(slow_link, text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().replace("Anna", "Nora"))
    texts = [text_file, other]
    children = [
        links.begin(
            n, *SMALL, "--data", str(texts[n]), "--steps", "2", "--out", str(tmp_path / str(n))
        )
        for n in (0, 1)
    ]
    said = []
    for child in children:
        _, errors = child.communicate(timeout=250)
        assert child.returncode == 1
        said += [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "its text is not that of process 0" in said[0]
