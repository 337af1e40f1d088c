"""Check a built site: links and anchors lead somewhere, and nothing is fetched from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Links of these kinds are followed when somebody clicks, all others as the page is shown.
CLICKED = {("a", "href"), ("area", "href"), ("form", "action"), ("blockquote", "cite")}
NAMES = {"canonical", "next", "prev", "author", "license", "alternate"}  # of <link>: not fetched
ADDRESSES = {"href", "src", "srcset", "poster", "data", "action", "cite", "xlink:href"}
_CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class _Page(HTMLParser):
    """Collects a page's ids, the addresses it names and the styles in it."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str, str]] = []  # tag, attribute, address
        self.styles: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values and tag != "meta"}
        self._in_style = tag == "style"
        if "style" in values:
            self.styles.append(values["style"])
        if tag == "link" and set(values.get("rel", "").split()) & NAMES:
            return
        for name in ADDRESSES & values.keys():
            addresses = values[name].split(",") if name == "srcset" else [values[name]]
            self.links += [(tag, name, address.strip().split(" ")[0]) for address in addresses]

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def check(site: Path) -> list[str]:
    """Return what is wrong with the site in folder `site`, a line each; none if all is well."""
    site, problems = site.resolve(), []
    pages = {path: _read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} holds no page"]
    for path, page in pages.items():
        where = path.relative_to(site)
        if path.name == "404.html":  # its addresses depend on where it is shown
            continue
        for tag, attribute, address in page.links:
            parts = urlsplit(address)
            if parts.scheme in ("data", "mailto", "javascript"):
                continue
            if parts.scheme or parts.netloc:
                if (tag, attribute) not in CLICKED:
                    problems.append(f"{where}: <{tag}> fetches {address}")
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                problems.append(f"{where}: {address} leads nowhere")
            elif parts.fragment and target.suffix == ".html":
                ids = pages[target].ids if target in pages else set()
                if unquote(parts.fragment) not in ids:
                    problems.append(f"{where}: {address} has no such place on its page")
        problems += [f"{where}: a style fetches {a}" for s in page.styles for a in _foreign(s)]
    for path in sorted([*site.rglob("*.css"), *site.rglob("*.svg")]):
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(site)
        problems += [f"{where}: a style fetches {address}" for address in _foreign(text)]
    return problems


def _foreign(style: str) -> list[str]:
    """Return the addresses on other hosts that a style sheet fetches."""
    found = [a or b for a, b in _CSS.findall(style)]
    return [a for a in found if a.startswith("//") or urlsplit(a).scheme in ("http", "https")]
