"""The card that a run prints at its end: what it cost, what came of it, what to type next."""

from __future__ import annotations

import os
import sys
import webbrowser

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from pipeline.degenerate import degenerate_line
from pipeline.recipe import Recipe
from pipeline.run import Run
from pipeline.story import stage_rows

console = Console()


def show_card(run: Run, recipe: Recipe, *, up_to_date: bool = False, browser: bool = False) -> None:
    """Print the card of a run as far as it got; with ``browser``, open its report where there is a desktop."""
    if up_to_date:
        console.print(f"[bold]{recipe.name}[/] is up to date")
    console.print(_stages(run, recipe))
    for line in _results(run):
        console.print(line, highlight=False)
    if (classified := run.manifest("classify")) and not run.manifest("eval"):
        console.print(f"report      {(run.stage('classify') / 'report.html').resolve()}", soft_wrap=True)
        if classified["metrics"]["answers"]:
            console.print(f"next        gonggam chat {run.folder}")
    if manifest := run.manifest("eval"):
        for sample in manifest["metrics"]["samples"]:
            console.print(_sample(sample))
        report = (run.stage("eval") / "report.html").resolve()
        console.print(f"report      {report}", soft_wrap=True)
        if browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"):
            webbrowser.open(report.as_uri())
        console.print(f"next        gonggam chat {run.folder}")
        console.print("            gonggam recipe show eeve-10.8b   (the same on a GPU with a real base model)")


def _stages(run: Run, recipe: Recipe) -> Table:
    table = Table(title=f"run {recipe.name}", title_justify="left")
    for row in stage_rows(run, recipe):
        if not table.columns:
            for name in row:
                table.add_column(name, justify="left" if name == "stage" else "right")
        table.add_row(
            *("–" if value is None else f"{value:,}" if name != "stage" else value for name, value in row.items())
        )
    return table


def _results(run: Run) -> list[str]:
    lines = []
    if manifest := run.manifest("eval"):
        told = " → ".join(f"{name} {value:.1f}" for name, value in manifest["metrics"]["perplexity"].items())
        lines.append(f"perplexity  {told}  (human replies of the test split, per token; lower is better)")
    if manifest := run.manifest("dpo"):
        held_out = manifest["metrics"]["held_out"]
        lines.append(f"preference  {held_out['accuracy']:.0%} of {held_out['pairs']} held-out pairs ranked rightly")
        lines += [f"[yellow]warning     {escape(warning)}[/]" for warning in held_out.get("warnings", ())]
    if (manifest := run.manifest("memory")) and (found := manifest["metrics"]["retrieval"]):
        lines.append(
            f"retrieval   hit@5 {found['dense']['hit@5']:.0%}, chance {found['chance']['hit@5']:.0%} "
            f"(same category, {found['questions']} held-out questions)"
        )
    if (manifest := run.manifest("eval")) and (counted := manifest["metrics"].get("degenerate")):
        lines.append(f"degenerate  {degenerate_line(counted)}")
    if manifest := run.manifest("classify"):
        test = manifest["metrics"]["test"]
        lines.append(
            f"classifier  accuracy {test['accuracy']:.0%}, macro-F1 {test['macro_f1']:.2f}, top-5 {test['top_5']:.0%} "
            f"({manifest['metrics']['labels']} labels, {manifest['metrics']['examples']['test']} held-out texts)"
        )
    if (manifest := run.manifest("eval")) and manifest["metrics"]["judge_trusted"] is False:
        lines.append("[yellow]judge       could not tell good answers from bad ones; its scores say nothing[/]")
    return lines


def _sample(sample: dict) -> Panel:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, answer in sample["answers"].items():
        grid.add_row(name, escape(answer) or "(nothing)")
    return Panel(grid, title=escape(sample["question"]), title_align="left")
