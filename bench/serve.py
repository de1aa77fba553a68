"""The service: speed with a model, overhead without, staying small, losing nothing.

Run from the repository root: ``python bench/serve.py [throughput] [first] [overhead] [soak] [kills]``, all if none is
named; ``--small`` tries every part in a minute or two. Only a whole run at full size writes bench/results/serve.md.
Both sides of a comparison run in the same process tree, by turns, with the threads that OMP_NUM_THREADS gives each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import serve_load as load
import serve_model as model
from record import Row, publish

PARTS = ("throughput", "first", "overhead", "soak", "kills")


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


def main(arguments: list[str]) -> None:
    """Measure what is wanted."""
    small = "--small" in arguments
    wanted = [name for name in arguments if name in PARTS] or PARTS
    rows = []
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix=f"gonggam-{name}-") as folder:
            for row in parts(small)[name](Path(folder)):
                print(f"| {row[0]} | {row[1]} |", flush=True)
                rows.append(row)
    if not small and len(wanted) == len(PARTS):
        publish("serve", "The service", rows, ["torch", "transformers", "fastapi", "uvicorn", "sqlalchemy"])


if __name__ == "__main__":
    main(sys.argv[1:])
