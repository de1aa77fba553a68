"""The service: speed with a model, overhead without, staying small, losing nothing.

Run from the repository root: ``python bench/serve.py [throughput] [first] [overhead] [soak] [kills]``, all if none is
named; ``--small`` tries every part in a minute or two. Only a whole run at full size writes bench/results/serve.md.
Both sides of a comparison run in the same process tree, by turns, with the threads that OMP_NUM_THREADS gives each.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import serve_load as load
import serve_model as model

RESULT = Path(__file__).parent / "results" / "serve.md"
PARTS = ("throughput", "first", "overhead", "soak", "kills")


def parts(small: bool) -> dict[str, Callable[[Path], list[tuple[str, str]]]]:
    """Every part as a function of an empty folder."""
    if small:
        return {
            "throughput": lambda folder: model.throughput(model.build_model(folder), each=1, tokens=16, rounds=1),
            "first": lambda folder: model.first_token(model.build_model(folder), rounds=1),
            "overhead": lambda folder: load.overhead(folder, rate=20, seconds=3, users=10),
            "soak": lambda folder: load.soak(folder, minutes=0.1, rate=20, users=5),
            "kills": lambda folder: load.kills(folder, times=3),
        }
    return {
        "throughput": lambda folder: model.throughput(model.build_model(folder)),
        "first": lambda folder: model.first_token(model.build_model(folder)),
        "overhead": load.overhead,
        "soak": load.soak,
        "kills": load.kills,
    }


def main(arguments: list[str]) -> None:
    """Measure what is wanted."""
    small = "--small" in arguments
    wanted = [name for name in arguments if name in PARTS] or PARTS
    rows = []
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix=f"gonggam-{name}-") as folder:
            for what, figure in parts(small)[name](Path(folder)):
                print(f"| {what} | {figure} |", flush=True)
                rows.append((what, figure))
    if not small and len(wanted) == len(PARTS):
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        machine = f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}"
        head = f"# The service\n\n`python bench/serve.py`, {machine}, Python {platform.python_version()}\n\n"
        RESULT.write_text(head + "| what | figure |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
