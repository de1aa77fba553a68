"""Run every bench that fits this machine, one after another, and keep the card: ``python bench/all.py [NAME ...]``.

``--list`` says what would run and about how many minutes it takes on two cores. A bench that fails does not stop the
others; the exit status is 1 then, and the card keeps what was measured before.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from typing import Any

import card
from record import ROOT, goals


def words(bench: dict[str, Any]) -> list[str]:
    """The command's words, with what is optional where its variable is set."""
    extra = os.path.expandvars(bench.get("optional", ""))
    return shlex.split(os.path.expandvars(bench["command"])) + ([] if "$" in extra else shlex.split(extra))


def fits(bench: dict[str, Any]) -> bool:
    """Whether it can run on this machine."""
    if bench.get("needs") == "cuda":
        import torch

        return torch.cuda.is_available()
    return "$" not in os.path.expandvars(bench["command"])


def main() -> None:
    """Run what is asked for."""
    known = goals()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="run nothing")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"no bench is called {', '.join(unknown)}; there are {', '.join(known)}")
    failed = []
    for name in asked.names or known:
        bench = known[name]
        able = fits(bench)
        about = f"about {bench['minutes']} min" if able else f"left out; it needs {card.needed(bench)}"
        print(f"{name}: {about}", flush=True)
        if asked.list or not able:
            continue
        if subprocess.run([sys.executable, *words(bench)], cwd=ROOT, check=False).returncode:
            failed.append(name)
        card.main()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
