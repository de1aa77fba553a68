"""What `make demo` does once the packages are in, in an empty folder, and once more: ``python bench/demo.py``.

Prints the card of the run, which the README shows, then minutes and peak memory of the largest process.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

from record import ROOT, record


def launch(folder: str) -> float:
    """The command that `make demo` gives; returns its seconds."""
    config, recipe = ROOT / "recipes/accelerate/cpu.yaml", ROOT / "recipes/demo.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    free = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment = {**free, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    subprocess.run([*command, "-m", "pipeline", str(recipe)], cwd=folder, env=environment, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Run it twice and record."""
    with tempfile.TemporaryDirectory() as folder:
        first, again = launch(folder), launch(folder)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    record("demo", {"minutes": first / 60, "peak_gb": peak, "again_s": again}, ["torch", "transformers", "trl", "peft"])
    print(f"{first / 60:.1f} minutes, peak {peak:.2f} GB; when all is up to date {again:.1f} s")


if __name__ == "__main__":
    main()
