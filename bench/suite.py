"""Minutes that the test suite takes on two workers, as `make test` runs it: ``python bench/suite.py``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from record import ROOT, record


def main() -> None:
    """Run it and record."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "suite.xml"
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", f"--junitxml={out}"]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        minutes = (time.perf_counter() - began) / 60
        counts = next(ElementTree.parse(out).getroot().iter("testsuite")).attrib
    tests, failed = int(counts["tests"]), int(counts["failures"]) + int(counts["errors"])
    record("suite", {"minutes": minutes, "failed": failed}, ["pytest", "pytest-xdist", "hypothesis"])
    print(f"{tests} tests in {minutes:.1f} minutes, {failed} failed, {counts['skipped']} left out")


if __name__ == "__main__":
    main()
