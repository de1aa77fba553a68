"""The pictures of the documents, taken from a finished run: ``python docs/screenshots.py runs/demo``.

The page is used as a person would (in Chromium, by the playwright package that `make test` brings), served by
`gonggam serve` from a copy of the run, so that nothing said here stays in it. Commands are run and their output is
drawn as a terminal shows it. Replies are the run's own: what its gate withdraws is answered by the human-written ones.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gonggam.errors import UserError
from gonggam.fonts import font_face_css

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

IMAGES = Path(__file__).parent / "images"
CHROMIUM = "/usr/bin/chromium"
PHONE, DESKTOP = (390, 844), (1280, 800)
COLUMNS, COLOURS, SECONDS = 100, 128, 180
SAID = ("면접에서 떨어졌어요. 나는 왜 이럴까요?", "며칠째 잠도 잘 안 와요", "친구가 전화해 줘서 조금 고마웠어요")
GRAVE = "그냥 죽고 싶어요"
GONGGAM = (sys.executable, "-c", "from pipeline.cli import main; main()")
PLAN = ("plan", "eeve-10.8b", "--gpu", "a100-80gb", "--only", "sft", "prepare.sources=[{reader: counsel_ko}]")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run, such as runs/demo")
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--browser", default=CHROMIUM)
    given = parser.parse_args()
    try:
        take(given.run.resolve(), given.out, given.browser)
    except UserError as error:
        sys.exit(f"error {error}")


def take(run: Path, out: Path, chromium: str) -> None:
    """All pictures of a run.

    Raises:
        UserError: the run is not finished, or there is no browser.
    """
    report = run / "eval" / "report.html"
    if not report.is_file():
        raise UserError("the run has no report", "finish it first: gonggam run demo", file=report)
    if not Path(chromium).is_file():
        raise UserError(f"no browser at {chromium}", "install Debian's chromium, or name one with --browser")
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with serving(run) as address:
            phone(browser, address, out)
            desktop(browser, address, out)
        terminal(browser, PLAN, out / "plan.png")
        terminal(
            browser,
            ("preview", str(run / "recipe.lock.yaml"), "-n", "1", "--runs", str(run.parent)),
            out / "preview.png",
        )
        with window(browser, DESKTOP) as page:
            page.goto(report.as_uri())
            save(page, out / "report.png")
        browser.close()


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """The address of the service over a copy of the run."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        copy = Path(folder) / run.name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("users", "gonggam.db*", "checkpoint-*"))
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        command = [*GONGGAM, "serve", str(copy), "--accounts", "--port", str(port)]
        service = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            wait(f"{address}/health/ready", service)
            yield address
        finally:
            service.terminate()
            service.wait()


def wait(url: str, service: subprocess.Popen[bytes]) -> None:
    """Until the service answers.

    Raises:
        UserError: it ended, or took too long.
    """
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and service.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise UserError("the service did not start", "try `gonggam serve` on this run to see why")


@contextmanager
def window(browser: Browser, size: tuple[int, int], *, dark: bool = False) -> Iterator[Page]:
    """A window of its own, with cookies of its own."""
    scheme = "dark" if dark else "light"
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, locale="ko-KR", color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    yield page
    context.close()


def phone(browser: Browser, address: str, out: Path) -> None:
    """A talk on a phone, feelings, the help lines in light and dark."""
    with window(browser, PHONE) as page:
        enter(page, address, "minji")
        for text in SAID:
            say(page, text)
        save(page, out / "chat-phone.png")
        page.get_by_role("tab", name="마음 흐름").click()
        page.locator(".moods svg").wait_for()
        save(page, out / "moods-phone.png")
        page.get_by_role("tab", name="대화").click()
        say(page, GRAVE)
        save(page, out / "crisis-phone.png")
        page.emulate_media(color_scheme="dark")
        page.reload()
        page.locator(".crisis").wait_for()
        newest(page)
        save(page, out / "crisis-phone-dark.png")


def desktop(browser: Browser, address: str, out: Path) -> None:
    """A talk on a desktop, and the choice of a manner of speech."""
    with window(browser, DESKTOP) as page:
        enter(page, address, "seojun")
        for text in SAID:
            say(page, text)
        high = page.evaluate("document.scrollingElement.scrollHeight")
        page.set_viewport_size({"width": DESKTOP[0], "height": max(high, DESKTOP[1])})  # heading and newest at once
        newest(page)
        save(page, out / "chat-desktop.png")
        page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
        page.get_by_role("tab", name="말투").click()
        page.get_by_label("할아버지").check()
        page.locator(".manner h2", has_text="할아버지").wait_for()
        save(page, out / "manner-desktop.png")


def enter(page: Page, address: str, name: str) -> None:
    """Sign up."""
    page.goto(f"{address}/sign-up")
    page.locator("[name=name]").fill(name)
    page.locator("[name=password]").fill("파란 고래 42마리")
    page.locator("[name=agree]").check()
    page.locator("form button").click()
    page.locator("#message").wait_for()


def say(page: Page, text: str) -> None:
    """Send a message and wait for its reply."""
    turns = page.locator(".turn:has(.tools)")
    known = turns.count()
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    turns.nth(known).wait_for()
    newest(page)


def newest(page: Page) -> None:
    """Wait until the end of the conversation stands above the row where one writes."""
    page.wait_for_function(
        """() => {
          const newest = [...document.querySelectorAll(".turn")].at(-1).getBoundingClientRect();
          const writing = document.querySelector(".composer").getBoundingClientRect();
          return newest.bottom <= Math.min(writing.top, window.innerHeight) + 1;
        }"""
    )


def terminal(browser: Browser, arguments: tuple[str, ...], path: Path) -> None:
    """What a command of gonggam prints, as a terminal shows it.

    Raises:
        UserError: the command fails.
    """
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    with tempfile.TemporaryDirectory() as folder:
        colours = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "HF_HUB_OFFLINE": "1"}
        command = [*GONGGAM, *arguments]
        made = subprocess.run(command, cwd=folder, env=colours, capture_output=True, text=True, check=False)
    if made.returncode:
        raise UserError(f"gonggam {arguments[0]} failed", made.stderr.strip().splitlines()[-1])
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(made.stdout))
    drawn = console.export_html(inline_styles=True, theme=MONOKAI, code_format="<pre>{code}</pre>")
    with window(browser, DESKTOP) as page:
        page.set_content(f"<style>{style(made.stdout)}</style>{drawn}")
        save(page.locator("pre"), path)


def style(text: str) -> str:
    """How a terminal looks."""
    font = '14px/1.3 "DejaVu Sans Mono", "Gonggam Nanum", monospace'
    look = f"font: {font}; background: #0c0c0c; color: #d9d9d9; padding: 18px; width: max-content; margin: 0"
    return f"{font_face_css(text)} pre {{ {look} }}"


def save(shown: Page | Locator, path: Path) -> None:
    """A picture with few colours, which is a small file."""
    from PIL import Image

    with Image.open(io.BytesIO(shown.screenshot(animations="disabled"))) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
