"""The documentation: it builds, its links lead somewhere, and every block of it runs.

Commands run as they stand but for what would take long, and nothing else:

- `i3lm train`: `--preset i3-tiny --context 32`, and `--steps` 2, 4, 6, ... from command to command
  of a page instead of its `--time` and `--steps`; `TrainConfig(...)` in Python likewise.
- `--memory SIZE` becomes 4GB: the process that runs the tests has more in it than a training run.
- A text file shown in a page, ```text title="NAME", is written with its lines repeated.
- The commands of installation are compared with the README's, which `make test` runs.
"""

import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from i3lm.__main__ import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Pages whose blocks have tests of their own. performance.md and memory.md: what their figures say
# comes from benchmarks/results; AdamW4bit of memory.md runs in tests/optim/test_blockwise.py.
TESTED_ELSEWHERE = {"memory.md", "performance.md", "log.md", "math.md", "architecture.md"}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
REPEATS = 60
TINY = ["--preset", "i3-tiny", "--context", "32"]

pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return (language, title, text) of each block of a page."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with texts and a model, as a reader of any page may have them."""
    folder = tmp_path_factory.mktemp("reader")
    turns = "[INST] Hi, I am Anna number {0}. [/INST] Hello Anna! What do you like, number {0}?\n"
    text = "".join(turns.format(i) for i in range(200))
    for name in ("my_text.txt", "other_text.txt"):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "notes").mkdir()
    story = "In the morning the fox number {0} went out.\n\nIt came home late, number {0}.\n"
    (folder / "notes" / "one.txt").write_text("".join(map(story.format, range(100))))
    texts = ["--data", str(folder / "my_text.txt"), "--out", str(folder / "my-model")]
    assert main(["train", *texts, *TINY, "--steps", "2", "--quiet"]) == 0
    return folder


class Reader:
    """Does what a page says, in a folder."""

    def __init__(self) -> None:
        self.steps = 0
        self.names: dict = {"__name__": "page"}

    def do(self, language: str, title: str, text: str) -> None:
        if title:
            path = Path(title)
            repeats = 1 if path.suffix == ".py" else REPEATS
            with open(path, "a", encoding="utf-8") as file:
                for number in range(repeats):  # documents that differ, as real ones do
                    file.write(text if repeats == 1 else text.replace(".", f" {number}."))
        elif language == "console":
            for line in text.splitlines():
                if line.startswith("$ "):
                    self.command(line[2:])
        elif language == "python":
            text = re.sub(r", time=\d+\)", ', preset="i3-tiny", context=32, steps=2)', text)
            exec(compile(text, "page", "exec"), self.names)
        else:
            assert language in ("text", "json"), language

    def command(self, line: str) -> None:
        words = shlex.split(line)
        if words[0] == "i3lm":
            assert main(self.shortened(words[1:])) == 0, line
        elif words[0] == "python":
            python = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            subprocess.run(["bash", "-c", line], check=True, env=python)
        else:
            assert line in README or line == "source .venv/bin/activate", line

    def shortened(self, words: list[str]) -> list[str]:
        words = list(words)
        if "--memory" in words:
            words[words.index("--memory") + 1] = "4GB"
        if not words or words[0] != "train":
            return words
        for name in ("--time", "--steps", "--preset"):
            if name in words:
                at = words.index(name)
                del words[at : at + 2]
        self.steps += 2
        tiny = [] if "--resume" in words else TINY
        return [*words, *tiny, "--steps", str(self.steps)]


@pytest.mark.parametrize("page", [page for page in pages if page not in TESTED_ELSEWHERE])
def test_what_a_page_shows_runs(page, prepared, tmp_path, monkeypatch, capsys):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    made = set(re.findall(r"--out (\S+)", (DOCS / page).read_text(encoding="utf-8")))
    if "my-model" in made:
        shutil.rmtree("my-model")
    reader = Reader()
    for block in blocks(page):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n"))
        reader.do(*block)


def test_pages_without_a_test_here_are_the_ones_that_are_named():
    assert set(pages) >= TESTED_ELSEWHERE
    for page in TESTED_ELSEWHERE - {"memory.md"}:
        assert not [block for block in blocks(page) if block[0] in ("console", "python")], page


def test_the_table_of_sizes_is_true():
    from i3lm.presets import PRESETS

    text = (DOCS / "model.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        a = preset.architecture
        sizes = (a.hidden_size, a.num_hidden_layers, a.num_attention_heads, a.rank, a.state_size)
        row = [*sizes, a.max_position_embeddings, f"{a.vocab_size:,}", f"{a.parameters:,}"]
        assert f"| `{name}` | {' | '.join(map(str, row))} |" in text, name


def test_the_rates_of_the_recipe_are_true():
    from i3lm.optim.groups import RATES

    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    rates = re.findall(r"^\| .* \| ([\d.]+) \((?:Muon|AdamW)\) \|$", text, re.MULTILINE)
    assert [float(rate) for rate in rates] == [*RATES["muon"].values()]


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    import nbformat

    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += '\nPRESET, SECONDS, CONVERSATIONS = "i3-tiny", 4, 100'
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert "You: Who are you?" in said
    assert float(outputs[-1]["data"]["text/plain"]) > 0


# The site


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site, in a copy of what the build reads."""
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings")
    root = tmp_path_factory.mktemp("project")
    for name in ("docs", "tools", "src"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("mkdocs.yml", *(path.name for path in ROOT.glob("*.md"))):
        shutil.copy(ROOT / name, root / name)
    command = [sys.executable, str(root / "tools" / "build_site.py")]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    return root / "site"


def test_every_page_is_in_the_navigation(site):
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- [^#\n]+: (\S+\.md)$", text, re.MULTILINE))
    built = {str(path.relative_to(site.parent / "build" / "docs")) for path in site_pages(site)}
    assert named == built
    assert yaml.safe_load(text)["theme"]["font"] is False


def site_pages(site: Path) -> list[Path]:
    return [*(site.parent / "build" / "docs").rglob("*.md")]


def test_the_command_line_is_told_by_the_commands(site):
    from i3lm.cli import group

    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, command in group.commands.items():
        assert f"Usage: i3lm {name} " in page
        options = {o for p in command.params for o in p.opts if o.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", page)), name


def test_the_python_reference_has_every_public_name(site):
    import i3lm

    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in i3lm.__all__:
        assert name == "__version__" or f"i3lm.{name}<" in page.replace("\n", ""), name
    for field in i3lm.TrainConfig.__dataclass_fields__:
        assert f"<code>{field}</code>" in page


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="nowhere.html">x</a>', "nowhere.html leads nowhere"),
        ('<a href="#nowhere">x</a>', "#nowhere has no such place"),
        ('<img src="https://example.org/a.png">', "<img> fetches https://example.org/a.png"),
        ('<img srcset="//example.org/a.png 2x">', "<img> fetches //example.org/a.png"),
        ('<script src="//example.org/a.js"></script>', "<script> fetches //example.org/a.js"),
        ('<link rel="preconnect" href="https://example.org">', "<link> fetches"),
        ('<p style="background: url(https://example.org/a.png)">', "a style fetches"),
        ("<style>@import 'https://example.org/a.css';</style>", "a style fetches"),
        ('<a href="https://example.org/">x</a><p id="x"><a href="#x">y</a>', None),
    ],
)
def test_the_check_finds_what_is_wrong(html, problem, tmp_path):
    check = runpy.run_path(str(ROOT / "tools" / "check_site.py"))["check"]
    (tmp_path / "index.html").write_text(html, encoding="utf-8")
    found = check(tmp_path)
    assert (problem is None and not found) or (len(found) == 1 and problem in found[0])
    assert check(tmp_path / "empty")


def test_a_broken_link_stops_the_build(site):
    page = site.parent / "docs" / "index.md"
    page.write_text("[x](nowhere.md) [y](math.md#nowhere)\n", encoding="utf-8")
    command = [sys.executable, str(site.parent / "tools" / "build_site.py")]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 1
    assert "2 issues found" in out.stderr
