"""The page of a report: HTML, its style, its script and its data in one file.

All text passes `html.escape`, and the page's own policy lets no other script run than the one that
is written here and nothing be fetched.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from i3lm.report.history import History
from i3lm.training.config import Every

Rows = Sequence[tuple[str, str]]


@dataclass
class Run:
    """A run as a page shows it."""

    name: str
    history: History
    config: dict[str, Any] = field(default_factory=dict)


@cache
def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def escape(value: object) -> str:
    """Return text for HTML, also for attributes."""
    return html.escape(str(value), quote=True)


def page(
    title: str,
    subtitle: str,
    runs: Sequence[Run],
    sections: Iterable[str],
    *,
    limit: int | None = None,
    live: bool = False,
) -> bytes:
    """Return the whole page. `sections` are HTML; `limit` is drawn into the chart of memory."""
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(
        {
            "runs": [{"name": run.name, **run.history.curves()} for run in runs],
            "limit": limit,
            "live": live,
        },
        separators=(",", ":"),
        allow_nan=False,
    )
    data = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head, *rest = sections
    axes = "".join(
        f'<label><input type="radio" name="axis" value="{value}"{checked}> {name}</label>'
        for value, name, checked in (
            ("step", "steps", " checked"), ("tokens", "tokens", ""), ("seconds", "time", ""),
        )
    )  # fmt: skip
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_part("page.css")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>
<main>
{head}
<h2>Curves</h2>
<fieldset class="axis" aria-label="Horizontal axis">{axes}
<span class="soft hint">point at a curve, or select it and use the arrow keys</span></fieldset>
<noscript><p>The curves are drawn by this page's script, which is switched off here; all figures
are in metrics.jsonl.</p></noscript>
<div class="charts" id="charts"></div>
{"".join(rest)}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
    return text.encode("utf-8", "replace")


def section(title: str, *content: str) -> str:
    """Return a section with a heading; nothing where it is empty."""
    inside = "".join(content)
    return f"<section><h2>{escape(title)}</h2>{inside}</section>\n" if inside else ""


def tiles(values: Rows) -> str:
    """Return figures in boxes: (name, value)."""
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in values
    )
    return f'<div class="tiles">{boxes}</div>'


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> str:
    """Return a table; numbers (all columns but the first, where there is a head) stand right."""
    number = ' class="number"' if head else ""
    top = "".join(
        f'<th scope="col"{number if i else ""}>{escape(name)}</th>' for i, name in enumerate(head)
    )
    body = "".join(
        '<tr><th scope="row">'
        + escape(row[0])
        + "</th>"
        + "".join(f"<td{number}>{escape(value)}</td>" for value in row[1:])
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>' if body else ""


def bar(parts: Sequence[tuple[str, float, str]], whole: float | None = None) -> str:
    """Return a bar of parts (name, amount, amount in words), and what they are."""
    parts = [part for part in parts if part[1] > 0]
    total = max(whole or 0.0, sum(amount for _, amount, _ in parts)) or 1.0
    left, drawn, rows = 0.0, "", ""
    for i, (name, amount, words) in enumerate(parts):
        width = 100 * amount / total
        drawn += (
            f'<rect class="f{i % 8}" x="{left:.2f}" y="0" width="{width:.2f}" height="10">'
            f"<title>{escape(name)}: {escape(words)}</title></rect>"
        )
        left += width
        rows += (
            f'<tr><th scope="row"><span class="key f{i % 8}"></span>{escape(name)}</th>'
            f'<td class="number">{escape(words)}</td><td class="number">{amount / total:.0%}</td>'
            "</tr>"
        )
    if not parts:
        return ""
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f"{drawn}</svg><table>{rows}</table>"
    )


def columns(*content: str) -> str:
    """Return blocks side by side where there is room."""
    return '<div class="columns">' + "".join(f"<div>{part}</div>" for part in content) + "</div>"


def talks(turns: Iterable[tuple[str, str, str]]) -> str:
    """Return sample replies: (when, prompt, reply)."""
    return "".join(
        f'<div class="talk"><span class="when">{escape(when)}</span>'
        f'<p class="asked" dir="auto">{escape(prompt)}</p>'
        f'<p dir="auto">{escape(reply or "(nothing)")}</p></div>'
        for when, prompt, reply in turns
    )


def words(setting: object) -> str:
    """Return the value of a setting in words."""
    if isinstance(setting, tuple | list):
        return ", ".join(map(str, setting)) or "built-in conversations"
    if isinstance(setting, Every):
        return f"{setting.steps:,} steps" if setting.steps else f"{setting.seconds:g} s"
    return "by default" if setting is None else str(setting)
