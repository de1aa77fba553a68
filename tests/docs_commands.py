"""The commands, snippets and links that README and docs hold, as data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.ko.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = r"gonggam|python|accelerate|make|pip|tensorboard|pytest|tar|sqlite3|git"
SPAN = re.compile(rf"`((?:[A-Z_]+=\S+ )?(?:{PROGRAMS}) [^`]+)`")
# What stands for a user's own thing in running text: any value shows whether the command takes it.
STAND_INS = {"[MODEL]": "model", "FILES…": "a.csv", "…": "", "runs/NAME": "runs/demo", "--days N": "--days 3"}


@dataclass(frozen=True)
class Fence:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a page; ``fenced`` if it stands in a block that invites to be pasted."""

    page: Path
    line: int
    words: tuple[str, ...]
    fenced: bool

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} {shlex.join(self.words)}"


def fences(page: Path) -> Iterator[Fence]:
    """Every fenced block of a page."""
    opened: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            if opened:
                yield Fence(page, *opened, "\n".join(inside))
            opened, inside = (None, []) if opened else ((number, line[3:]), [])
        elif opened:
            inside.append(line)


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page: of its shell blocks, and those written in running text."""
    for fence in fences(page):
        if fence.language == "bash":
            text = fence.text.replace("\\\n", "  ")
            for offset, line in enumerate(text.splitlines(), 1):
                for words in split(line):
                    yield Command(page, fence.line + offset, words, fenced=True)
    outside = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), page.read_text("utf-8"), flags=re.M | re.S)
    for number, line in enumerate(outside.splitlines(), 1):
        for span in SPAN.finditer(line):
            text = span[1]
            for name, value in STAND_INS.items():
                text = text.replace(name, value)
            for words in split(text):
                yield Command(page, number, words, fenced=False)


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The words of every command of a line, without comments, variables set in front, and redirections."""
    words = shlex.split(re.sub(r"(^|\s)#.*", "", line))
    for part in " ".join("\0" if word == "&&" else shlex.quote(word) for word in words).split("\0"):
        found = shlex.split(part)
        while found and re.match(r"[A-Z_]+=", found[0]):
            found.pop(0)
        if ">" in found:
            found = found[: found.index(">")]
        if found:
            yield tuple(found)


def links(page: Path) -> Iterator[str]:
    """Where links and pictures of a page point, those to other sites left out."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src(?:set)?=\"([^\"]+)\"", text):
        found = next(filter(None, target), "")
        if found and "://" not in found:
            yield found
