"""The chat page in a real browser."""

import os
import re
import shutil
import time

import pytest
from serving_helpers import Server

from i3lm.presets import TEMPERATURE
from i3lm.serving.schema import DEFAULT_TOKENS

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("I3LM_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (or set I3LM_CHROMIUM)")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = [
    '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>',
    "]]>'\"><svg/onload=alert(1)> javascript:alert(1) {{7*7}} ${7*7}",
    "مرحبا، كيف حالك؟ \u202eabc\u202c",
    "🙂👩‍👩‍👧‍👦🇺🇳 e\u0301 \u0000\u0007\ufeff \ud83d\ude00",
    "[INST] [/INST] <eos> <bos>",
    "a" * 5000,
    "line\n" * 500,
]


@pytest.fixture(scope="module")
def browser():
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as launched,
    ):
        yield launched


@pytest.fixture
def open_page(browser):
    """Open the page of a server; no error may be on its console, no other site be asked."""
    contexts, errors, asked = [], [], []

    def call(url, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(30_000)
        contexts.append((context, url))
        page = context.new_page()
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(url)
        return page

    yield call
    for context, url in contexts:
        assert all(address.startswith(url) for address in asked)
        context.close()
    # The browser's own word for a server that is away, or wants a key.
    assert [e for e in errors if "Failed to load resource" not in e] == []


def until(page, expression, seconds=30):
    """Wait for JavaScript to be true; playwright's own way would need eval in the page."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.03)


def ready(page):
    page.wait_for_selector("[data-state=ok]")
    until(page, "document.querySelector('#send use').href.baseVal === '#i-send'")


def say(page, text, wait=True):
    page.fill("#input", text)
    page.press("#input", "Enter")
    if wait:
        page.wait_for_selector(".writing", state="detached")
        page.wait_for_selector("article.assistant:last-child .foot")


def limit(page, tokens):
    """Set the length of replies, as a user of the keyboard would."""
    page.click("#open-settings")
    page.evaluate(
        "n => { const e = document.getElementById('tokens'); e.value = n; e.oninput(); }", tokens
    )
    page.keyboard.press("Escape")


def test_conversations(open_page, server):
    page = open_page(server.url)
    ready(page)
    assert page.inner_text("#model") == "tiny"
    assert page.is_disabled("#send")
    limit(page, 16)
    say(page, "the cat")
    reply = page.inner_text("article.assistant .body")
    assert reply
    assert re.search(r"16 tokens · [\d,]+ tokens/s", page.inner_text(".foot"))
    assert reply in page.text_content("#announce")
    page.click("text=New conversation >> nth=0")
    page.click("text=Who are you?")
    page.wait_for_selector("article.assistant .foot")
    assert page.locator("#list li").count() == 2
    page.hover("#list li:has-text('the cat')")
    page.get_by_label("Rename: the cat").click()
    page.fill("#name", "مثال <b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=مثال <b>")
    page.reload()
    ready(page)
    assert page.locator("#list .name").all_inner_texts()[0] == "مثال <b>"
    assert page.inner_text("article.assistant .body") == reply
    page.get_by_label("Delete: مثال <b>").click()
    assert page.locator("#list li").count() == 1
    page.click("text=Undo")
    assert page.inner_text("article.assistant .body") == reply
    page.get_by_label("Delete: مثال <b>").click()
    page.reload()
    ready(page)
    assert page.locator("#list li").count() == 1
    page.click("#open-about")
    assert "32 tokens" in page.inner_text("#facts")
    page.click("summary")
    assert "Citation" in page.inner_text("#card")
    page.keyboard.press("Escape")


def test_settings_are_the_servers_until_somebody_moves_them(open_page, server):
    page = open_page(server.url)
    asked = []
    page.on("request", lambda asks: asks.method == "POST" and asked.append(asks.post_data_json))
    ready(page)
    page.click("#open-settings")
    assert page.inner_text("#temperature-out") == f"{TEMPERATURE:.2f}"
    assert page.inner_text("#tokens-out") == str(DEFAULT_TOKENS)
    page.keyboard.press("Escape")
    say(page, "the cat")
    assert [asked[-1][name] for name in ("temperature", "max_tokens")] == [None, None]
    page.click("#open-settings")
    page.press("#temperature", "Home")
    page.keyboard.press("Escape")
    page.reload()
    ready(page)
    say(page, "the mat")
    assert [asked[-1][name] for name in ("temperature", "max_tokens")] == [0, None]


def test_stop_retry_and_the_window(open_page, server):
    page = open_page(server.url)
    ready(page)
    limit(page, 900_000)
    say(page, "the cat", wait=False)
    until(page, "document.querySelector('.writing .body')?.textContent.length > 200")
    assert page.get_attribute("#send", "aria-label") == "Stop the reply"
    begun = len(page.text_content(".writing .body"))
    until(page, f"document.querySelector('.writing .body').textContent.length > {begun}")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")
    server.until(0)
    stopped = page.text_content("article.assistant .body")
    assert len(stopped) > begun
    limit(page, 8)
    page.get_by_label("Try again").click()
    page.wait_for_selector("text=8 tokens")
    assert page.locator("article").count() == 2
    for _ in range(4):
        say(page, "the other hat and her tea")
    assert page.locator(".gone").count() == 1
    assert page.locator("article.past").count() >= 2
    assert page.locator(".note").count() == 1
    assert "oldest turns are forgotten" in page.inner_text(".note")
    say(page, "x", wait=False)
    page.wait_for_selector("article.assistant:last-child .foot")


def test_hostile_text(open_page, server):
    page = open_page(server.url)
    ready(page)
    limit(page, 8)
    for text in HOSTILE:
        say(page, text)
    shown = [
        page.evaluate("e => e.textContent", handle)
        for handle in page.query_selector_all("article.user .body")
    ]
    assert shown == [page.evaluate("t => t", text) for text in HOSTILE]
    assert page.evaluate("document.querySelectorAll('article img, article script').length") == 0
    assert "owned" not in page.title()
    sizes = "[document.documentElement.scrollWidth, innerWidth]"
    assert page.evaluate(f"({sizes})[0] <= ({sizes})[1]")
    arabic = page.locator("article.user .body").nth(2)
    assert arabic.evaluate("e => getComputedStyle(e).direction") == "rtl"
    page.evaluate("localStorage.setItem('i3lm.chat.x', '{\"id\": 1'); ")
    page.evaluate('localStorage.setItem(\'i3lm.chat.y\', \'{"id": "y", "messages": [{}]}\')')
    page.evaluate("localStorage.setItem('i3lm.settings', '[1')")
    page.reload()
    ready(page)
    assert page.locator("#list li").count() == 1
    say(page, "the cat sat " * 8000)
    assert "only the last" in page.inner_text("article:last-child")


def test_a_phone(open_page, server):
    phone = {"width": 375, "height": 667}
    page = open_page(server.url, viewport=phone, is_mobile=True, has_touch=True)
    ready(page)
    limit(page, 64)
    say(page, "the cat " * 30)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 375
    assert box["y"] + box["height"] <= 667
    assert page.evaluate("document.getElementById('side').inert")
    page.tap("#menu")
    page.wait_for_selector("body.open #new:focus")
    page.keyboard.press("Escape")
    assert page.evaluate("document.getElementById('side').inert")
    assert page.evaluate("document.activeElement.id") == "menu"
    for dialog in ("settings", "about"):
        page.tap(f"#open-{dialog}")
        box = page.locator(f"#{dialog}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375
        page.keyboard.press("Escape")


def test_the_keyboard_alone(open_page, server):
    page = open_page(server.url, reduced_motion="reduce")
    ready(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#input") == "one\ntwo"
    unnamed = """[...document.querySelectorAll('button, input, textarea')].filter(e =>
        !e.getAttribute('aria-label') && !e.textContent.trim()
        && !e.labels?.length && e.id != 'shade')"""
    assert page.evaluate(f"({unnamed}).length") == 0
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" or page.evaluate("document.activeElement === document.body")
    assert {"send", "new", "open-about", "open-settings", "scroll"} <= reached


CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if ((c[3] ?? 1) === 1) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([e.textContent.slice(0, 30), ratio]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page, server, scheme):
    page = open_page(server.url, color_scheme=scheme)
    ready(page)
    assert page.evaluate(CONTRAST) == []
    limit(page, 8)
    for _ in range(3):
        say(page, "the other hat and her tea")
    page.wait_for_selector(".gone")
    assert page.evaluate(CONTRAST) == []
    page.click("#open-settings")
    assert page.evaluate(CONTRAST) == []


def test_a_server_that_restarts_and_wants_a_key(open_page, folder):
    flags = ("--max-new-tokens", "1000000")
    with Server(folder, *flags, key="sesame") as first:
        page = open_page(first.url)
        page.wait_for_selector("#settings[open]")
        page.fill("#key", "sesame")
        page.keyboard.press("Enter")
        ready(page)
        limit(page, 900_000)
        say(page, "the cat", wait=False)
        until(page, "document.querySelector('.writing .body')?.textContent.length > 50")
        first.process.kill()
        page.wait_for_selector(".note.bad")
        assert "broke off" in page.inner_text(".note.bad")
        assert "Trying again" in page.inner_text("#banner")
        page.fill("#input", "a draft")
        assert page.is_disabled("#send")
    with Server(folder, *flags, key="sesame", port=first.port):
        ready(page)
        assert page.is_hidden("#banner")
        assert page.input_value("#input") == "a draft"
        limit(page, 8)
        page.get_by_label("Try again").click()
        page.wait_for_selector("text=8 tokens")
