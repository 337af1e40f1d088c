"""Make the pictures of this folder from a run: python docs/images/make.py RUN [FOLDER FOR THE PDF]

Needs playwright and the chromium browser. The live view is drawn from the run's own metrics.
"""

import io
import json
import re
import shutil
import sys
from pathlib import Path

from rich.console import Console

from i3lm.training.terminal import TerminalListener, View

HERE = Path(__file__).parent
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def live_view(run: Path, width: int = 80) -> None:
    """Draw the view as it stood at nine tenths of the run."""

    def console() -> Console:
        return Console(
            file=io.StringIO(),
            force_terminal=True,
            width=width,
            record=True,
            highlight=False,
            color_system="truecolor",
        )

    listener = TerminalListener(console())
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("progress", 0) > 0.9:
            break
        listener("step" if "loss" in row else "evaluation", row)
    listener.close()
    picture = console()
    picture.print("$ i3lm train --data my_text.txt --time 3m --out my-model")
    picture.print(View(listener))
    text = picture.export_svg(title="i3lm train")
    text = re.sub(r"@font-face \{.*?\}\n", "", text, flags=re.DOTALL)  # fonts of another server
    (HERE / "live-view.svg").write_text(text)


def report(page: Path) -> None:
    """Photograph the report: light, dark, on a phone, printed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER)
        for name, scheme, width, height in [
            ("light", "light", 1100, 1000),
            ("dark", "dark", 1100, 1000),
            ("phone", "light", 375, 1000),
        ]:
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": height}
            )
            tab = context.new_page()
            tab.on("pageerror", lambda error: print("error:", error))
            tab.on("console", lambda message: print("console:", message.text))
            tab.goto(page.resolve().as_uri())
            tab.wait_for_timeout(300)
            size = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert size[0] <= size[1], f"{name} scrolls sideways: {size}"
            if name == "light":
                tab.locator("figure svg").first.hover(position={"x": 200, "y": 80})
                print(tab.locator("figure output").all_inner_texts())
                if len(sys.argv) > 2:  # a folder for what is only looked at
                    tab.pdf(path=f"{sys.argv[2]}/report.pdf")
                    tab.emulate_media(media="print")
                    tab.set_viewport_size({"width": 760, "height": 1000})
                    tab.wait_for_timeout(300)
                    tab.screenshot(path=f"{sys.argv[2]}/report-print.png", full_page=True)
                    tab.emulate_media(media="screen")
                    tab.set_viewport_size({"width": width, "height": height})
                    tab.locator("figure svg").first.hover(position={"x": 200, "y": 80})
                    tab.wait_for_timeout(300)
            tab.screenshot(path=str(HERE / f"report-{name}.png"))
            context.close()
        browser.close()


if __name__ == "__main__":
    live_view(Path(sys.argv[1]))
    report(Path(sys.argv[1]) / "report.html")
