"""`gonggam eval`: run, compare, report, simulate, meta. Thin: parse, call, print."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from pipeline.cli_arguments import RunFolder, Where

console = Console(soft_wrap=True, highlight=False)


class _RunByDefault(TyperGroup):
    """``gonggam eval runs/demo`` means ``gonggam eval run runs/demo``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple:  # of a class that typer keeps to itself
        """Put `run` before arguments that name no command."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


class Who(StrEnum):
    """Whose replies are compared."""

    policy = "policy"
    counselor = "counselor"


app = typer.Typer(cls=_RunByDefault, help="Judge answers, compare runs, rebuild reports.", no_args_is_help=True)


@app.command()
def run(
    folder: RunFolder,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="name or YAML of a judge; `local` is the run's own model; several form a jury"),
    ] = None,
    rubric: Annotated[str | None, typer.Option(help="name or YAML of a rubric")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="evaluate so many conversations")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="judgements per answer and criterion")] = None,
    pairwise: Annotated[bool | None, typer.Option(help="also let the judge compare the systems two by two")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="estimate the cost from the last replies, and stop")
    ] = False,
) -> None:
    """Do a run's eval stage anew. What the same judge was asked before is not asked again."""
    lock, judge = _lock(folder), judge or None
    if dry_run:
        return _estimate(folder, judge, rubric, limit, repeats, pairwise)
    from eval.collect import check_options
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run
    from pipeline.yardsticks import pair_makers

    given = {"judge": judge, "rubric": rubric, "items": limit, "repeats": repeats, "pairwise": pairwise}
    wanted: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if rubric:
        wanted["criteria"] = None  # those of the recipe belong to its own rubric
    overrides = [f"eval.{key}={json.dumps(value)}" for key, value in wanted.items()]
    recipe, state = load_recipe(lock, overrides), Run(folder)
    if recipe.eval:  # what is there already is not thrown away for a misspelt name
        check_options(recipe.eval, pair_makers(state.stage("prepare")), recipe.model.base)
    execute(recipe, state, ["gonggam", *sys.argv[1:]], only="eval", start=None, force=True)
    console.print(f"report: {folder / 'eval' / 'report.html'}")
    return None


@app.command()
def compare(
    targets: Annotated[
        list[str], typer.Argument(help="runs, model folders, hub ids, openai:URL#model; `base`: the first run's base")
    ],
    answers: Annotated[Who, typer.Option(help="the bare models' replies, or what users would be told")] = Who.policy,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="judge all anew: name, YAML or `local`, the first run's base; several: a jury"),
    ] = None,
    rubric: Annotated[str, typer.Option(help="rubric for --judge")] = "counsel-ko",
    pairwise: Annotated[bool, typer.Option(help="with --judge: also compare two by two")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="so many conversations")] = None,
    out: Annotated[Path, typer.Option(help="where the report goes")] = Path("compare"),
) -> None:
    """Several runs or models on the same conversations; replies that are missing are asked for."""
    from eval import EvalOptions, evaluate, load_judge, load_rubric
    from eval.report_details import measure_rows
    from eval.run import report_from
    from gonggam.progress import progress_bar
    from pipeline.cli_show import show_table
    from pipeline.referees import LOCAL, referees
    from pipeline.versus import contest
    from pipeline.yardsticks import checks, likeness_of

    load_rubric(rubric)
    for name in set(judge or ()) - {LOCAL}:
        load_judge(name)
    out.mkdir(parents=True, exist_ok=True)
    found = contest(targets, answers.value, limit, lambda name: console.print(f"asking {name}", style="dim"), out)
    if found.left_out:
        console.print(f"left out {found.left_out} conversations on which one of the runs was trained", style="yellow")
    if judge or found.raw is None:
        options = EvalOptions(rubric=rubric, judge=judge, items=len(found.items), pairwise=pairwise)
        given: dict[str, Any] = {"pairs": found.pairs, "pair_judge": found.makers, "sources": found.sources}
        given |= {"checks": checks(), **likeness_of(Path(found.first))}
        with referees(judge, found.first) as judges, progress_bar("compare") as progress:
            results = evaluate(found.items, found.replies, options, judges or None, out, progress, **given)
    else:
        found.raw.save(out / "raw")
        results = report_from(found.raw, out)
    if not results["judges"]:
        console.print("measures only; have the replies scored with --judge", style="yellow")
    _show(results)
    show_table("measures", measure_rows(results, bounds=False))
    console.print(f"report: {out / 'report.html'}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="a run folder or an evaluation folder")]) -> None:
    """Write the reports anew from the raw judgements; no judge is asked."""
    from eval import rebuild

    place = folder / "eval" if (folder / "eval" / "raw").is_dir() else folder
    _show(rebuild(place))
    console.print(f"report: {place / 'report.html'}")


@app.command()
def simulate(
    where: Where,
    cast: Annotated[str, typer.Option(help="YAML of personas and their scripts")] = "personas",
    turns: Annotated[int, typer.Option(min=1, help="user turns of each talk")] = 4,
    player: Annotated[
        str | None, typer.Option(help="a judge or `local` that plays the people; else their scripts are spoken")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="a judge or `local` that scores the talks of people in danger")
    ] = None,
    rubric: Annotated[str, typer.Option(help="rubric for --judge")] = "safety-ko",
    out: Annotated[Path | None, typer.Option(help="where the report goes; by default into the run")] = None,
) -> None:
    """Let simulated people, some of them in danger, talk to the counsellor; safety layer, gate and all."""
    from eval.collect import check_simulate
    from eval.options import SimulateOptions
    from eval.run import add_section
    from gonggam.blocks import Facts
    from pipeline import Counselor
    from pipeline.rehearse import rehearse

    options = SimulateOptions(cast=cast, turns=turns, player=player, judge=judge, rubric=rubric)
    check_simulate(options)
    folder = out or (Path(where) / "simulated" if Path(where).is_dir() else Path("simulated"))
    folder.mkdir(parents=True, exist_ok=True)
    bot = Counselor.load(where)
    try:
        section = rehearse(bot, folder, options, where)
    finally:
        bot.close()
    if (Path(where) / "eval" / "raw" / "evaluation.json").is_file():
        add_section(Path(where) / "eval", section)
    for block in section.blocks:
        if isinstance(block, Facts):
            console.print(", ".join(f"{name} {value}" for name, value in block.facts.items()))
    console.print(f"report: {folder / 'report.html'}")


@app.command()
def meta(
    file: Annotated[Path, typer.Argument(help="replies with human scores: .json, .jsonl or .csv")],
    criterion: Annotated[str | None, typer.Option(help="only this human score")] = None,
) -> None:
    """How well judgements, and plain measures, agree with human scores."""
    from eval.meta import meta_evaluate_file, meta_lines

    for line in meta_lines(meta_evaluate_file(file, criterion)):
        console.print(line, markup=False)


def _lock(folder: Path) -> Path:
    from gonggam.errors import UserError

    lock = folder / "recipe.lock.yaml"
    if not lock.is_file():
        raise UserError("no run folder (recipe.lock.yaml is missing)", "name one such as runs/demo", file=folder)
    return lock


def _estimate(
    folder: Path,
    judge: list[str] | None,
    rubric: str | None,
    limit: int | None,
    repeats: int | None,
    pairwise: bool | None,
) -> None:
    from eval import load_judge, load_rubric
    from eval.compare import find_raw
    from eval.cost import estimate
    from eval.work import work_of

    raw = find_raw(folder)
    count = limit or len(raw.items)
    judges = [load_judge(name) for name in judge if name != "local"] if judge else raw.judges
    options = raw.options if pairwise is None else raw.options.model_copy(update={"pairwise": pairwise})
    replies = {name: texts[:count] for name, texts in raw.replies.items()}
    work = work_of(raw.items[:count], replies, options, raw.pairs, raw.ratings)
    words = load_rubric(rubric) if rubric else raw.rubric
    console.print(str(estimate(words, judges, work.singles, work.against, repeats or raw.options.repeats)))


def _show(results: dict) -> None:
    from eval.report import gaps, trust_note, verdicts

    if note := trust_note(results):
        console.print(note[0], style="green" if note[1] == "good" else "red")
    for sentence in gaps(results):
        console.print(sentence, style="yellow")
    for sentence in verdicts(results) if results["judge_trusted"] is not False else ():
        console.print(sentence)
