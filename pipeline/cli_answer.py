"""`gonggam answer`: many questions at once, into a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(stderr=True, soft_wrap=True, highlight=False)


def answer(
    questions: Annotated[Path, typer.Argument(help=".txt with one question a line, or .csv or .xlsx with a column")],
    run: Annotated[list[str], typer.Option(help="run folder, model folder, hub id or openai:URL#model; repeatable")],
    out: Annotated[Path, typer.Option("-o", "--out", help="where the answers go: .csv or .xlsx")] = Path("answers.csv"),
    seed: Annotated[int, typer.Option(help="the same seed gives the same answers")] = 42,
) -> None:
    """Answer every question by each run; an interrupted call goes on where it stopped."""
    from gonggam.errors import UserError
    from pipeline import Counselor
    from pipeline.answer import answer_all, check_output
    from pipeline.run import state_of

    if not questions.is_file():
        raise UserError("file not found", "name a .txt, .csv or .xlsx file", file=questions)
    check_output(out)
    names = [Path(where).name if Path(where).exists() else where for where in run]
    if len(set(names)) < len(names):
        raise UserError("two runs have the same name", "rename one of the folders")
    bots = []
    try:
        for name, where in zip(names, run, strict=True):
            bots.append((name, Counselor.load(where, seed=seed)))
        with console.status("") as line:
            states = {name: state_of(where) for name, where in zip(names, run, strict=True)}
            done = answer_all(questions, bots, out, lambda count: line.update(f"{count:,} answered"), states)
    finally:
        for _, bot in bots:
            bot.close()
    console.print(f"{done:,} questions answered: {out}")
