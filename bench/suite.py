"""The test suite on two workers, as `make test` runs it: ``python bench/suite.py [--orders N]``.

With ``--orders`` it runs N times, each time with the test files, and the tests in each, in another random order.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from record import ROOT, record


def run(*order: str) -> tuple[float, int]:
    """Run it once; minutes, and how many tests failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "suite.xml"
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", f"--junitxml={out}", *order]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        minutes = (time.perf_counter() - began) / 60
        counts = next(ElementTree.parse(out).getroot().iter("testsuite")).attrib
    failed = int(counts["failures"]) + int(counts["errors"])
    print(f"{counts['tests']} tests in {minutes:.1f} minutes, {failed} failed", flush=True)
    return minutes, failed


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, metavar="N", help="run N times, in random orders")
    orders, used = parser.parse_args().orders, ["pytest", "pytest-xdist", "hypothesis"]
    if not orders:
        minutes, failed = run()
        record("suite", {"minutes": minutes, "failed": failed}, used)
        return
    failures = [run("--random-order", f"--random-order-seed={seed}")[1] for seed in range(orders)]
    record("suite-orders", {"runs": orders, "failed": sum(failures)}, [*used, "pytest-random-order"])


if __name__ == "__main__":
    main()
