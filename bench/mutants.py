"""Mutants that the tests let live: ``make mutants``, or ``python bench/mutants.py [--count]``.

mutmut changes one thing at a time in the files that ``[tool.mutmut]`` in pyproject.toml names, and runs the tests that
reach it. Survivors whose change is in ``bench/mutants.yaml`` are explained there; the others want a test, and the exit
status is 1, as it is where an explanation fits no survivor. What an earlier run left in ``mutants/`` is believed where
the code is the same: ``make mutants`` starts anew, the script goes on, and with ``--count`` it only counts. Nothing is
written to ``bench/results`` before every mutant was run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter, defaultdict

import yaml
from record import ROOT, publish

FATES = {"killed": "killed", "timeout": "killed", "not checked": "not run"}  # mutmut's words for all others: alive
REASONS: dict[str, list[dict[str, str]]] = yaml.safe_load((ROOT / "bench" / "mutants.yaml").read_text("utf-8"))


def mutmut(*arguments: str) -> str:
    """What mutmut prints."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def change(mutant: str) -> str:
    """The lines that a mutant takes out and puts in, as a diff without its head."""
    lines = mutmut("show", mutant).splitlines()
    return "\n".join(line for line in lines if re.match(r"[-+](?![-+])", line))


def reason(file: str, diff: str) -> str | None:
    """Why nothing can notice this change of a file, as far as that is written down."""
    fitting = (entry["because"] for entry in REASONS.get(file, []) if re.search(entry["change"], diff, re.MULTILINE))
    return next(fitting, None)


def main() -> None:
    """Run mutmut, and say of every file how many mutants there were and who lives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="do not run mutmut again")
    if not parser.parse_args().count:
        subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1"], cwd=ROOT, check=True)
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    idle = {entry["because"] for entries in REASONS.values() for entry in entries}
    for line in mutmut("results", "--all", "true").splitlines():
        mutant, _, status = line.strip().rpartition(": ")
        file, fate = mutant.rpartition(".")[0].replace(".", "/") + ".py", FATES.get(status, "alive")
        if fate == "alive":
            diff = change(mutant)
            if why := reason(file, diff):
                fate = "explained"
                idle.discard(why)
            else:
                print(f"{mutant} ({status})\n{diff}")
        fates[file][fate] += 1
    total = sum(fates.values(), Counter())
    kinds = ("killed", "explained", "alive", "not run")
    rows = [
        (file, ", ".join([f"{found.total()} mutants", *(f"{found[kind]} {kind}" for kind in kinds if found[kind])]))
        for file, found in sorted(fates.items())
    ]
    print("\n".join(": ".join(row) for row in rows))
    if total["not run"]:
        sys.exit(f"{total['not run']} of {total.total()} mutants were not run: go on with `make mutants`")
    sums = {"mutants": float(total.total()), "killed": float(total["killed"]), "alive": float(total["alive"])}
    publish("mutants", "Mutants and the tests", [*rows, ("all", f"{total['alive']} alive", sums)], ["mutmut"])
    for why in sorted(idle):
        print(f"bench/mutants.yaml: explains no survivor, take it out: {why}")
    sys.exit(1 if total["alive"] or idle else 0)


if __name__ == "__main__":
    main()
