"""``python -m eval``: evaluate files of replies, rebuild reports, meta-evaluate; no run folder or model needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.collect import spread_out
from eval.cost import estimate
from eval.data import load_items, load_rows
from eval.judges import load_judge
from eval.meta import meta_evaluate_file, meta_lines
from eval.options import EvalOptions
from eval.rubric import load_rubric
from eval.run import evaluate, rebuild
from eval.work import work_of
from gonggam.errors import UserError
from gonggam.progress import progress_bar


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2 for what the user can mend)."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.do(parsed)
    except UserError as error:
        print(f"error {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="judge replies in files")
    run.add_argument("items", help="conversations: .jsonl, .json or .csv")
    run.add_argument("--replies", action="append", default=[], metavar="NAME=FILE", help="rows with `reply`, in order")
    run.add_argument("--pairs", help="calibration: rows with messages, chosen, rejected")
    run.add_argument("--judge", action="append", default=[], help="name or YAML; several form a jury")
    run.add_argument("--rubric", default="counsel-ko")
    run.add_argument("--limit", type=int, default=1_000_000, help="evaluate so many conversations")
    run.add_argument("--repeats", type=int, default=1)
    run.add_argument("--pairwise", action="store_true")
    run.add_argument("--dry-run", action="store_true", help="estimate the cost and stop")
    run.add_argument("--out", type=Path, default=Path("eval-report"))
    run.set_defaults(do=_run)
    report = commands.add_parser("report", help="write the reports anew from raw judgements")
    report.add_argument("folder", type=Path)
    report.set_defaults(do=lambda a: (rebuild(a.folder), print(a.folder / "report.html")))
    meta = commands.add_parser("meta", help="agreement of judgements and plain measures with human scores")
    meta.add_argument("file")
    meta.add_argument("--criterion")
    meta.set_defaults(do=_meta)
    return parser


def _run(a: argparse.Namespace) -> None:
    items = load_items(a.items)[: a.limit]
    systems: dict[str, list[str]] = {}
    for named in a.replies:
        name, _, path = named.rpartition("=")
        systems[name or Path(path).stem] = [str(row.get("reply") or row.get("output") or "") for row in load_rows(path)]
    if not systems:
        systems["reference"] = [item["reference"] for item in items]
    options = EvalOptions(
        rubric=a.rubric, judge=a.judge or None, items=len(items), repeats=a.repeats, pairwise=a.pairwise
    )
    pairs = [_pair(number, row) for number, row in enumerate(load_rows(a.pairs), 1)] if a.pairs else []
    pairs = spread_out(pairs, options.calibration_pairs)
    if a.dry_run:
        replies = {name: texts[: len(items)] for name, texts in systems.items()}
        work = work_of(items, replies, options, pairs)
        print(estimate(load_rubric(a.rubric), list(map(load_judge, a.judge)), work.singles, work.against, a.repeats))
        return
    with progress_bar("judging") as progress:
        evaluate(items, systems, options, None, a.out, progress, pairs=pairs)
    print(a.out / "report.html")


def _pair(number: int, row: dict[str, Any]) -> dict[str, Any]:
    if any(not row.get(key) for key in ("messages", "chosen", "rejected")):
        raise UserError(f"calibration pair {number} needs messages, chosen and rejected")
    return {"id": str(row.get("id") or number), **row}


def _meta(a: argparse.Namespace) -> None:
    print("\n".join(meta_lines(meta_evaluate_file(a.file, a.criterion))))


if __name__ == "__main__":
    sys.exit(main())
