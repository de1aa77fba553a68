"""The service: speed with a model, overhead without, staying small, losing nothing.

Run from the repository root: ``python bench/serve.py [throughput] [first] [overhead] [soak] [kills]``, all if none is
named; ``--small`` tries every part in a minute or two. At full size each part writes bench/results/serve-PART.md.
Both sides of a comparison run in the same process tree, by turns, with the threads that OMP_NUM_THREADS gives each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import serve_load as load
import serve_model as model
from record import Row, publish

PARTS = {
    "throughput": "Many users at once",
    "first": "The first token",
    "overhead": "All but the model",
    "soak": "An hour shrunk to minutes",
    "kills": "Killed at random moments",
}
PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "sqlalchemy")


def parts(small: bool) -> dict[str, Callable[[Path], list[Row]]]:
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


def main() -> None:
    """Measure what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="a minute or two, and nothing is written")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for name in asked.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix=f"gonggam-{name}-") as folder:
            rows = parts(asked.small)[name](Path(folder))
        for row in rows:
            print(f"| {row[0]} | {row[1]} |", flush=True)
        if not asked.small:
            publish(f"serve-{name}", PARTS[name], rows, PACKAGES)


if __name__ == "__main__":
    main()
