"""Branch coverage of what must not break, part by part: ``make coverage``, or ``python bench/branches.py [PART ...]``.

Only the test files that are about a part are run, so that a branch counts only if one of them takes it; those it takes
in a process of its own count, too, unless that process is killed. Exits with 1 where a part lies below `ENOUGH`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from record import ROOT, publish

ENOUGH = 95.0
PARTS = {
    "recipe": (["pipeline/recipe/*"], ["tests/test_recipe_*.py", "tests/test_sweep.py"]),
    "mask": (["pipeline/train/mask.py"], ["tests/test_train_mask.py", "tests/test_train_mask_proof.py"]),
    "reassembly": (["data_prep/reassemble.py"], ["tests/test_data_reassemble.py"]),
    "prefix": (
        ["pipeline/train/prefix.py", "pipeline/train/attend.py", "pipeline/train/pack.py"],
        ["tests/test_train_prefix.py", "tests/test_train_pack.py"],
    ),
    "memory": (["rag/*"], ["tests/test_rag_*.py", "tests/test_eval_room.py"]),
    "safety": (
        [
            "pipeline/chat/classifier.py",
            "pipeline/chat/context.py",
            "pipeline/chat/gate.py",
            "pipeline/chat/keep.py",
            "pipeline/chat/parity.py",
            "pipeline/chat/risk.py",
            "pipeline/chat/safety.py",
            "pipeline/chat/turn.py",
        ],
        ["tests/test_chat_safety.py", "tests/test_chat_gate.py", "tests/test_chat_counselor.py"],
    ),
    "accounts": (
        [
            "pipeline/serve/accounts.py",
            "pipeline/serve/callers.py",
            "pipeline/serve/erasure.py",
            "pipeline/serve/guard.py",
            "pipeline/serve/native/*",
            "pipeline/serve/store/people.py",
            "pipeline/serve/store/rooms.py",
            "pipeline/serve/store/records.py",
        ],
        ["tests/test_serve_*.py", "tests/test_native_api.py", "tests/test_store.py"],
    ),
}
"""Part → its files, and the tests whose coverage of them counts."""
# SQLAlchemy and Starlette switch between greenlets and threads; the service's workers end at a signal.
SETTINGS = """\
[run]
branch = true
concurrency = thread, greenlet
data_file = {folder}/data
include = {files}
parallel = true
patch = subprocess
sigterm = true
"""


def measured(files: Iterable[str], tests: Iterable[str]) -> dict[str, dict[str, Any]]:
    """File → coverage.py's summary of it, from one run of the tests."""
    with tempfile.TemporaryDirectory() as folder:
        settings, out = Path(folder) / "coverage.ini", Path(folder) / "coverage.json"
        wanted = "".join(f"\n  {ROOT / file}" for file in files)
        settings.write_text(SETTINGS.format(folder=folder, files=wanted), "utf-8")
        environment = {**os.environ, "COVERAGE_RCFILE": str(settings), "OMP_NUM_THREADS": "1"}
        found = sorted(str(path.relative_to(ROOT)) for pattern in tests for path in ROOT.glob(pattern))
        for step in (["run", "-m", "pytest", *found], ["combine", "-q"], ["json", "-q", "-o", str(out)]):
            subprocess.run([sys.executable, "-m", "coverage", *step], cwd=ROOT, env=environment, check=True)
        return {name: file["summary"] for name, file in json.loads(out.read_text("utf-8"))["files"].items()}


def share(summaries: Iterable[dict[str, Any]]) -> tuple[str, float]:
    """Branches taken of all branches, in words and per cent."""
    rows = list(summaries)
    taken, all_ = (sum(row[key] for row in rows) for key in ("covered_branches", "num_branches"))
    return f"{taken} of {all_}", 100 * taken / all_


def main() -> None:
    """Measure the parts, print them, and write them down if none was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    asked = parser.parse_args().parts or list(PARTS)
    if unknown := set(asked) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    rows = []
    for part in asked:
        files = measured(*PARTS[part])
        words, percent = share(files.values())
        rows.append((part, f"{percent:.1f} % ({words} branches)", {part: percent}))
        poor = [name for name, one in files.items() if one["num_branches"] and share([one])[1] < ENOUGH]
        print(f"{part}: {rows[-1][1]}" + "".join(f"\n  below {ENOUGH:.0f} %: {name}" for name in poor), flush=True)
    if set(asked) == set(PARTS):
        publish("branches", "Branches that the tests take", rows, ["coverage", "pytest"])
    if low := [name for name, _, percent in rows if percent[name] < ENOUGH]:
        sys.exit(f"below {ENOUGH:.0f} %: {', '.join(low)}")


if __name__ == "__main__":
    main()
