"""Seconds until a command has read its arguments and could begin: ``python bench/startup.py [--rounds 3]``.

Every command of `gonggam` is asked for its help, each time in a process of its own; the median round counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from record import RESULTS, ROOT, record, table, told

CODE = "from pipeline.cli import main; main()"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def seconds(words: tuple[str, ...]) -> float:
    """How long the help of a command takes."""
    began = time.perf_counter()
    command = [sys.executable, "-c", CODE, *words, "--help"]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and write the table."""
    import typer

    from gonggam.files import write_text
    from pipeline.cli import app

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    names = list(commands(typer.main.get_command(app)))
    seconds(names[0])  # files are read once before it counts
    found = {name: statistics.median(seconds(name) for _ in range(asked.rounds)) for name in names}
    rows = [(f"`gonggam {' '.join(name)}`", f"{took:.2f}") for name, took in sorted(found.items(), key=lambda x: -x[1])]
    text = "\n".join(["# Starting up", "", told(), "", *table(("command", "s"), rows), ""])
    write_text(RESULTS / "startup.md", text)
    record("startup", {"slowest_s": max(found.values())}, ["typer"])
    print(text)


if __name__ == "__main__":
    main()
