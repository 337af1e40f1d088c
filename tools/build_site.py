"""Build the documentation site: docs/, the pages generated from the code, and the checks.

    python tools/build_site.py            build into site/, strictly, and check every page
    python tools/build_site.py --serve    the same, then serve it on http://127.0.0.1:8000

Generated: the command line (from each command's --help), the Python reference (mkdocstrings, from
the docstrings), the notebook as a page, and the files of the repository that are pages here too.
"""

import argparse
import ast
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

from check_site import check  # noqa: E402 (beside this file)

PAGES = ROOT / "build" / "docs"  # mkdocs.yml: docs_dir
# Files of the repository that are pages of the site.
ADOPTED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
HELP = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT / "src")}


def gather(pages: Path = PAGES) -> None:
    """Put all pages, written and generated, into the folder `pages`, anew."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for source, name in ADOPTED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        (pages / name).write_text(text.replace("](docs/", "]("), encoding="utf-8")
    (pages / "reference").mkdir(exist_ok=True)
    (pages / "reference" / "commands.md").write_text(commands_page(), encoding="utf-8")
    notebook = pages / "notebook.ipynb"
    (pages / "notebook.md").write_text(notebook_page(notebook), encoding="utf-8")
    for page in pages.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(_with_fields(_inline_drawings(text, page.parent)), encoding="utf-8")


def _inline_drawings(text: str, folder: Path) -> str:
    """Replace pictures that are .svg files by their contents, so that they follow the palette."""

    def drawing(found: re.Match) -> str:
        svg = (folder / found[2]).read_text(encoding="utf-8")
        return f"<figure>\n{svg.strip()}\n<figcaption>{found[1]}</figcaption>\n</figure>"

    return re.sub(r"^!\[([^]]*)\]\(([^):]+\.svg)\)$", drawing, text, flags=re.MULTILINE)


def _with_fields(text: str) -> str:
    """Put a table in the place of each `<!-- fields of MODULE.CLASS -->`."""

    def table(found: re.Match) -> str:
        return "\n".join(["| field | type | default | |", "|---|---|---|---|", *fields(found[1])])

    return re.sub(r"^<!-- fields of (\S+) -->$", table, text, flags=re.MULTILINE)


def fields(name: str) -> list[str]:
    """Return a row for each field of a dataclass, with the comment that explains it."""
    module, _, class_name = name.rpartition(".")
    path = ROOT / "src" / f"{module.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    fields = next(node for node in found if node.name == class_name).body
    rows = []
    for field in fields:
        if isinstance(field, ast.AnnAssign):
            end = source.splitlines()[(field.end_lineno or 1) - 1][field.end_col_offset :]
            comment = end.partition("#")[2].strip()
            default = f"`{ast.unparse(field.value)}`" if field.value else ""
            kind = ast.unparse(field.annotation).replace("|", "\\|")
            rows.append(f"| `{ast.unparse(field.target)}` | {kind} | {default} | {comment} |")
    return rows


def commands() -> Iterator[list[str]]:
    """Yield the words of every command: [], ["train"], ["bench", "train"], ..."""
    from i3lm.cli import group

    def walk(words: list[str], command: click.Command) -> Iterator[list[str]]:
        yield words
        for name, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                yield from walk([*words, name], child)

    yield from walk([], group)


def help_text(words: list[str]) -> str:
    """Return what `i3lm WORDS --help` prints on a terminal of 80 columns."""
    command = [sys.executable, "-m", "i3lm", *words, "--help"]
    environment = {**os.environ, **HELP}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return out.stdout.replace("python -m i3lm", "i3lm").rstrip()


def commands_page() -> str:
    """Return the page of the command line."""
    parts = [
        "# Command line\n\nWhat each command says of itself with `--help`. Exit codes: 0 all went "
        "well, 2 a mistake that the printed line tells how to mend, 130 stopped by Ctrl-C."
    ]
    for words in commands():
        name = " ".join(["i3lm", *words])
        parts.append(f"## {name}\n\n```text\n{help_text(words)}\n```")
    return "\n\n".join(parts) + "\n"


def notebook_page(path: Path) -> str:
    """Return a notebook as a page: its text, its code, and where to get it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"]).rstrip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"This page is a notebook: [download it]({path.name}).")
    return "\n\n".join(parts) + "\n"


def build() -> list[str]:
    """Build the site; return what is wrong with it, a line each."""
    gather()
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        said = re.sub("\x1b\\[[0-9;]*m", "", out.stdout + out.stderr)  # its colours
        return [f"zensical build --strict ends with {out.returncode}:", said]
    return check(ROOT / "site")


def serve() -> None:
    """Serve site/ until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(ROOT / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler) as server:
        print("http://127.0.0.1:8000")
        server.serve_forever()


def main() -> int:
    """Build, check, and serve where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve it afterwards")
    arguments = parser.parse_args()
    problems = build()
    for line in problems:
        print(line, file=sys.stderr)
    if problems:
        return 1
    print(f"built and checked: {ROOT / 'site' / 'index.html'}")
    if arguments.serve:
        serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
