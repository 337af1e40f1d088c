"""The documentation: it builds, its links lead somewhere, and every block of it runs.

Commands run as they stand but for what would take long, and nothing else:

- `i3lm train`: `--preset i3-tiny --context 32 --eval-every 1000`, and `--steps` 2, 4, 6, ... from
  command to command of a page instead of its `--time` and `--steps`; `TrainConfig` likewise.
- `--memory SIZE` becomes 4GB: the process that runs the tests has more in it than a training run.
- `open_source(size=...)` gives 60 conversations.
- A text file shown in a page, ```text title="NAME", is written with its lines repeated.
- The commands of installation are compared with the README's, which `make test` runs.
"""

import functools
import http.server
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from i3lm.__main__ import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Pages whose blocks do not run here, and the file that tests what they show.
TESTED_ELSEWHERE = {
    "evaluate.md": "tests/export/test_export_docs.py",
    "export.md": "tests/export/test_export_docs.py",
    "memory.md": "tests/optim/test_blockwise.py",
    "parallel.md": "tests/training/test_parallel.py",
    "performance.md": "tests/test_bench.py",
    "python.md": "tests/test_python.py",
    "serve.md": "tests/serving/test_serve_api.py",
    "transformers.md": "tests/hf/test_recipes.py",
}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
REPEATS = 60
TINY = ["--preset", "i3-tiny", "--context", "32", "--eval-every", "1000"]

pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return (language, title, text) of each block of a page."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with texts and a model, as a reader of any page may have them."""
    folder = tmp_path_factory.mktemp("reader")
    turns = "[INST] Hi, I am Anna number {0}. [/INST] Hello Anna! What do you like, number {0}?\n"
    text = "".join(turns.format(i) for i in range(100))
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
            text = re.sub(r', time="\w+"', ', preset="i3-tiny", context=32, steps=2', text)
            text = re.sub(r"open_source\(size=\d+\)", "open_source(size=60)", text)
            exec(compile(text, "page", "exec"), self.names)
        else:
            assert language in ("text", "json"), language

    def command(self, line: str) -> None:
        words = shlex.split(line)
        if words[0] == "i3lm":
            assert words[1:2] != ["serve"], "it never ends: name its test in TESTED_ELSEWHERE"
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


def test_pages_whose_blocks_do_not_run_here_are_tested_elsewhere():
    for page, path in TESTED_ELSEWHERE.items():
        assert page not in pages or (ROOT / path).is_file(), page


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
    parameters.source += '\nPRESET, SECONDS, CONVERSATIONS = "i3-tiny", 2, 60'
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
    titles = re.findall(r"<h3 [^>]*>(.*?)</h3>", page, re.DOTALL)
    named = {re.sub(r"<[^>]+>", "", title).split()[0] for title in titles}
    assert {f"i3lm.{name}" for name in i3lm.__all__ if name != "__version__"} <= named
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


POLICY = "default-src 'self' 'unsafe-inline' data: blob:; report-uri /report"


def test_a_page_fetches_nothing_from_other_hosts(site):
    """In a real browser, which reports what breaks the policy that it is served with."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    asked, reports = [], []

    class Server(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Content-Security-Policy-Report-Only", POLICY)
            super().end_headers()

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def do_POST(self):
            reports.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    quiet = "--disable-background-networking --disable-component-update --disable-sync"
    flags = f"--headless --no-sandbox --disable-gpu --disable-quic --no-first-run {quiet}"

    def visit(page: str) -> str:
        address = f"http://127.0.0.1:{server.server_port}/{page}"
        command = [browser, *flags.split(), "--virtual-time-budget=3000", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    stranger = "<img src='http://127.0.0.2:9/a.png'><script src='/reference/x.js'></script>"
    (site / "stranger.html").write_text(f"<!doctype html><title>x</title>{stranger}")
    handler = functools.partial(Server, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            shown = visit("model.html")
            assert reports == []
            visit("stranger.html")
        finally:
            server.shutdown()
            thread.join()
    assert "The first head of each layer" in shown
    assert any(path.startswith("/assets/javascripts/") for path in asked)
    assert len(reports) == 1
    assert "127.0.0.2" in reports[0]


def test_a_broken_link_stops_the_build(site):
    page = site.parent / "build" / "docs" / "index.md"
    page.write_text("[x](nowhere.md) [y](math.md#nowhere)\n", encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    out = subprocess.run(command, cwd=site.parent, capture_output=True, text=True)
    assert out.returncode == 1
    assert "2 issues found" in out.stdout + out.stderr
