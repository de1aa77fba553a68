"""The page in a real browser: a service whose counsellor can be made to wait, and people who visit it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_standin import ScriptedBackend, ScriptedStream
from store_standin import GOOD, OTHER, PASSWORD

from pipeline.chat.backends import Piece

CHROMIUM = "/usr/bin/chromium"
FREE = 3
"""Words that are said while the counsellor is made to wait."""


class WaitingStream(ScriptedStream):
    """Says its first words, then nothing until ``go`` is set."""

    go: threading.Event

    def __iter__(self):
        for place, piece in enumerate(super().__iter__()):
            while place >= FREE and not self.go.wait(0.01):
                yield Piece("", 0, 0.0)
            yield piece


class WaitingBackend(ScriptedBackend):
    """Says `GOOD` and `OTHER` in turn, or what `say` holds; waits within a reply while ``go`` is not set."""

    def __init__(self):
        super().__init__(GOOD)
        self.go, self.say = threading.Event(), []
        self.go.set()

    def stream(self, requests):
        made = []
        for request in requests:
            self.asked.append(request)
            text = self.say.pop(0) if self.say else (GOOD, OTHER)[len(self.asked) % 2]
            stream = WaitingStream(request, text, -1.0)
            stream.go = self.go
            made.append(stream)
        return made


class Visitor:
    """A browser window on the service; notes whatever leaves the origin and every error on the page."""

    def __init__(self, page, address):
        self.page, self.address, self.outside, self.errors = page, address, [], []
        page.set_default_timeout(30_000)
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())

    def _note(self, request):
        if not request.url.startswith((self.address + "/", "data:", "blob:")):
            self.outside.append(request.url)

    def go(self, path):
        self.page.goto(self.address + path)

    def sign_up(self, name, *, training=False):
        self.go("/sign-up")
        self.page.get_by_role("textbox", name="이름").fill(name)
        self.page.get_by_role("textbox", name="비밀번호").fill(PASSWORD)
        self.page.locator("[name=agree]").check()
        if training:
            self.page.locator("[name=training]").check()
        self.page.get_by_role("button", name="동의하고 시작하기").click()
        self.page.locator("#message").wait_for()

    def write(self, text):
        self.page.locator("#message").fill(text)
        self.page.keyboard.press("Enter")

    def say(self, text):
        """Send a message and wait until its reply is kept; returns the reply."""
        turns = self.page.locator(".turn:has(.tools)")
        known = turns.count()
        self.write(text)
        turns.nth(known).wait_for()
        return turns.nth(known).locator(".bubble.it p").inner_text()

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()


@contextmanager
def chromium():
    """A browser; skips where there is none."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visiting(browser, address, *, width=1280, height=800, dark=False, touch=False):
    """A `Visitor` with cookies of its own; nothing it does may leave the service or fail on the page."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, locale="ko-KR", color_scheme=scheme, accept_downloads=True,
        has_touch=touch, is_mobile=touch,
    )  # fmt: skip
    visitor = Visitor(context.new_page(), address)
    yield visitor
    context.close()
    assert visitor.outside == []
    assert visitor.errors == []
