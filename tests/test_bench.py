"""Each benchmark, tiny, from the command line to its JSON. Nothing here depends on a time."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from i3lm.presets import PRESETS

ROOT = Path(__file__).parents[1]


def bench(name: str, out: Path, *options: str, table: str | None = None) -> dict:
    """Run `i3lm bench NAME`; return what it wrote, and printed, unless it printed a `table`."""
    done = subprocess.run(
        [*(sys.executable, "-m", "i3lm", "bench", name, "--rounds", "1", "--threads", "1"),
         *("--out", str(out), *options), *(["--json"] if table is None else [])],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    if table is None:
        assert json.loads(done.stdout) == result
    else:
        assert table in done.stdout
    assert result["benchmark"] == name
    assert result["rounds"] == result["threads"] == 1
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["cpu"]
    assert {"python", "torch", "transformers", "i3lm"} <= result["versions"].keys()
    assert result["date"].startswith("20")
    assert "commit" in result
    return result


def are_rates(figures: dict) -> bool:
    return all(0 < f["min"] <= f["median"] <= f["max"] for f in figures.values())


def test_train(tmp_path):
    result = bench("train", tmp_path / "a.json", "--preset", "i3-tiny", "--tokens", "128")
    speeds = result["tokens_per_second"]
    assert are_rates(speeds)
    assert are_rates(result["flops_per_second"])
    gpts = {f"gpt {p} batch {b}" for p in ("fp32", "bf16") for b in (1, 4, 8, 16)}
    mine = {"i3lm", "i3lm batch 8", "i3lm batch 16"}
    assert speeds.keys() == {*mine, "published", *gpts}
    same = result["ratio_gpt_same_batch"]["16"]
    best = max(speeds[f"gpt {p} batch 16"]["median"] for p in ("fp32", "bf16"))
    assert same == speeds["i3lm batch 16"]["median"] / best
    ours = speeds["i3lm"]["median"]
    assert result["ratio_gpt"] == ours / max(speeds[name]["median"] for name in gpts)
    fastest = max(speeds[name]["median"] for name in mine)
    assert result["ratio_gpt_best_batches"] == pytest.approx(result["ratio_gpt"] * fastest / ours)
    assert result["ratio_gpt"] == min(result["ratio_gpt_fp32"], result["ratio_gpt_bf16"])
    assert result["ratio_published"] == ours / speeds["published"]["median"]
    products = result["flops_per_second"]["fp32 products"]["median"]
    assert result["mfu"] == result["flops_per_token"] * ours / products
    assert result["precision"] in ("fp32", "bf16")
    assert result["parameters"]["i3lm"] == result["parameters"]["published"]
    assert {"i3lm", "published"} < result["peak_bytes"].keys()
    assert len(result["peak_bytes"]) == 4
    assert min(result["peak_bytes"].values()) > 50e6
    assert [row["length"] for row in result["lengths"]] == [128, 256, 512]
    assert all(row["recurrences"] > 0 and row["total"] > 0 for row in result["lengths"])


def test_decode(tmp_path):
    result = bench("decode", tmp_path / "a.json", "--preset", "i3-tiny", "--tokens", "4")
    assert are_rates(result["tokens_per_second"])
    assert result["new_tokens"] == 4
    speeds = {name: figures["median"] for name, figures in result["tokens_per_second"].items()}
    ours = speeds["i3lm, 1 stream, threads 1"]
    assert result["ratio_gpt2"] == ours / speeds["gpt2 generate, 1 stream, threads 1"]
    assert result["ratio_gpt2_bare_loop"] == ours / speeds["gpt2 bare loop, 1 stream, threads 1"]
    assert result["ratio_gpt2_batch"] > 0
    assert result["ratio_gpt2_bare_loop_batch"] > 0
    assert are_rates(result["seconds_per_token_at"])
    assert list(result["seconds_per_token_at"]) == ["10", "60", "120"]


@pytest.mark.skipif(importlib.util.find_spec("tiktoken") is None, reason="the extra `bench`")
def test_tokenizer(tmp_path):
    data = tmp_path / "text.txt"
    story = "Tom is {} years old. He sees a dog, café {}.\n"
    data.write_text("".join(story.format(n, n % 7) for n in range(2_000)), encoding="utf-8")
    result = bench("tokenizer", tmp_path / "a.json", "--data", str(data))
    speeds = {name: figures["median"] for name, figures in result["bytes_per_second"].items()}
    assert are_rates(result["bytes_per_second"])
    assert result["same_ids_as_tokenizer_json"] is True
    one, two = speeds["i3lm file, cores 1"], speeds["i3lm file, cores 2"]
    assert result["two_cores"] == two / one
    assert result["ratio_tiktoken"] == one / speeds["tiktoken file, cores 1"]
    assert result["ratio_tiktoken_two_cores"] == two / speeds["tiktoken file, cores 2"]
    assert result["ratio_tiktoken_ids"] > 0
    assert speeds["i3lm counting"] > 0
    assert min(result["characters_per_token"].values()) > 1


def test_startup(tmp_path):
    options = ("--preset", "i3-tiny")
    result = bench("startup", tmp_path / "a.json", *options, table="chat_first_token")
    assert are_rates(result["seconds"])
    assert result["targets"].keys() < result["seconds"].keys()
    assert 0 < result["peak_bytes"]["chat"] <= 1.05 * result["peak_bytes"]["chat with torch"]
    for name in ("help_seconds", "info_seconds", "chat_first_token_seconds"):
        assert result[name] == result["seconds"][name]["median"]


def test_without_a_clone_one_line_says_so(tmp_path):
    package = tmp_path / "site" / "i3lm"
    shutil.copytree(ROOT / "src" / "i3lm", package, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import i3lm.__main__ as m"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(m.main(['bench', 'startup']))"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: benchmarks need a clone of i3lm")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_the_gpt_is_of_equal_size(preset):
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.peers import gpt, published
    finally:
        sys.path.remove(str(ROOT))
    sizes = PRESETS[preset].architecture
    like = gpt.sizes_like(sizes.parameters, sizes.vocab_size, sizes.max_position_embeddings)
    assert sum(p.numel() for p in gpt.GPT(like).parameters()) == like.parameters
    assert 0.7 < like.parameters / sizes.parameters < 1.3
    peer = published.Published(sizes)
    assert sum(p.numel() for p in peer.parameters()) == sizes.parameters


def test_quality(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. and the dog ran to the cat.\n" * 400)
    out, names = tmp_path / "q.json", ("i3lm", "gpt-muon:1e-2", "published", "published-scan")
    done = subprocess.run(
        [*(sys.executable, "-m", "benchmarks.quality", *names, "--train", str(text)),
         *("--test", str(text), "--tokens", "6000", "--seeds", "1", "--preset", "i3-tiny"),
         *("--vocab-size", "400", "--threads", "1", "--out", str(out)),
         *("--plot", str(tmp_path / "first.svg"))],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert [row["contender"] for row in result["summary"]] == list(names)
    bits = [row["mean_bits_per_character"] for row in result["summary"]]
    assert bits[0] < 4.5  # a start; letters alone: 4
    assert bits[2] == pytest.approx(bits[3], abs=0.01)  # a scan computes what the loop does
    for run in result["runs"]:
        assert run["tokens"] >= 6000
        assert run["test_characters"] > 20_000
        assert len(run["curve"]) >= 5
    lines = tmp_path / "q.jsonl"  # what `one` prints for each
    lines.write_text("".join(f"{json.dumps(run)}\n" for run in result["runs"]))
    again = tmp_path / "again.svg"
    with lines.open("a") as file:  # as nanogpt's row is
        file.write('{"contender": "nanogpt", "seed": 0, "curve": []}\n')
    drawn = draw(out, lines, "--plot", again, "--over", "share")
    assert drawn.returncode == 0, drawn.stderr
    for picture in (tmp_path / "first.svg", again):
        assert "<svg" in picture.read_text()
    half_hour = ROOT / "benchmarks" / "results" / "quality_half_hour.json"
    assert "i3-mini has no seconds" in draw(half_hour, "--plot", again, "--over", "seconds").stderr
    out.write_text('{"runs": [{"contender": "i3lm"}]}')
    refused = draw(out, "--plot", tmp_path / "none.svg")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {out} has no runs")
    assert not (tmp_path / "none.svg").exists()
    assert "must end in .png or .svg" in draw(lines, "--plot", "a.gif").stderr


def draw(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.quality.draw", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("optimizers", ["--preset", "i3-tiny", "--rounds", "1", "--threads", "1"]),
        ("budgets", []),
    ],
)
def test_benchmarks_with_a_command_of_their_own(tmp_path, name, options):
    out = tmp_path / "a.json"
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options, "--out", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    result = json.loads(out.read_text())
    assert result["benchmark"] == name
    assert result["machine"]
    if name == "optimizers":
        assert result["ratio_adamw_4_bits"] > 0
    else:
        least = {model: row["least_bytes"] for model, row in result["rows"].items()}
        assert least["i3-12m, Muon"] < least["i3-22m, Muon"] < least["99M, Muon"]
