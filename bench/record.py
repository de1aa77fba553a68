"""What the benches share: where and with what they ran, tables, and how their figures come to stand on the card.

A bench hands its figures to `record`, which writes ``bench/results/NAME.json``; ``bench/card.py`` puts them beside the
goals of ``bench/goals.yaml``.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "bench" / "results"
GOALS = ROOT / "bench" / "goals.yaml"
Row = tuple[str, str] | tuple[str, str, dict[str, float]]  # what, its figure as it is shown, and as the card takes it


def goals() -> dict[str, dict[str, Any]]:
    """Every bench with its command and figures, in the order of the card."""
    return yaml.safe_load(GOALS.read_text("utf-8"))


def machine() -> str:
    """Cores, processor, system and Python in one line; with the GPU where torch is loaded and sees one."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor() or "processor"
    torch = sys.modules.get("torch")
    gpu = [torch.cuda.get_device_name()] if torch and torch.cuda.is_available() else []
    cores = f"{os.cpu_count()} cores"
    return ", ".join([*gpu, cores, processor, platform.machine(), f"Python {platform.python_version()}"])


def versions(names: Iterable[str]) -> dict[str, str]:
    """Package → version."""
    return {name: version(name) for name in names}


def command() -> str:
    """The command as it was given; of a program elsewhere on this machine only its name."""
    said = [f"PATH/{Path(word).name}" if os.path.isabs(word) else word for word in sys.argv[1:]]
    return " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *said])


def told() -> str:
    """Command, machine and load as a sentence or two for the head of a table."""
    threads = os.environ.get("OMP_NUM_THREADS")
    limited = f", OMP_NUM_THREADS {threads}" if threads else ""
    return f"`{command()}`. {machine()}{limited}. Load average at the end {os.getloadavg()[0]:.1f}."


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table as lines."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def record(name: str, measured: Mapping[str, float], packages: Iterable[str] = ()) -> None:
    """Write what a bench measured to ``bench/results/NAME.json``, in place of what stood there.

    Args:
        name: the bench, as in ``goals.yaml``.
        measured: figure by key; what was not measured this time is left out.
        packages: whose versions matter.

    Raises:
        KeyError: ``goals.yaml`` does not know the bench or one of the figures.
    """
    from gonggam.files import write_json

    unknown = set(measured) - set(goals()[name]["figures"])
    if unknown:
        raise KeyError(f"goals.yaml has no figure {', '.join(sorted(unknown))} for {name}")
    found = {
        "measured": {key: float(value) for key, value in measured.items()},
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions(packages),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{name}.json", found)


def publish(name: str, title: str, rows: Sequence[Row], packages: Iterable[str] = (), *, about: str = "") -> None:
    """Write a bench's rows as ``bench/results/NAME.md``, and `record` what they hold for the card."""
    from gonggam.files import write_text

    found = ", ".join(f"{package} {number}" for package, number in versions(packages).items())
    lines = [f"# {title}", "", " ".join(filter(None, (told(), f"{found}." if found else "", about))), ""]
    lines += table(("what", "figure"), (row[:2] for row in rows))
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{name}.md", "\n".join(lines) + "\n")
    record(name, {key: value for row in rows for key, value in (row[2] if len(row) > 2 else {}).items()}, packages)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
