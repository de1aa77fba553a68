"""`gonggam plan`, `preview`, `curves`, `merge`, `sweep`: what stands around training. Thin: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli_arguments import Overrides, RecipeFile, RunFolder, Runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.recipe import Recipe
    from pipeline.run import Run
    from pipeline.train.plan import Planner
    from pipeline.train.plan_stage import StagePlan

console = Console(soft_wrap=True, highlight=False)


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu: Annotated[list[str] | None, typer.Option(help="a100-80gb, h100, h200, rtx-4090, cpu ...; repeatable")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="how many, each with a whole model (DDP)")] = 1,
    sharded: Annotated[bool, typer.Option("--sharded", help="the model split over them (FSDP2, ZeRO-3)")] = False,
    only: Annotated[str | None, typer.Option(help="sft or dpo alone")] = None,
    config: Annotated[str | None, typer.Option(help="a config.json in place of the base model's")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Rows, steps, memory and time of training, before any model is loaded. Prepares the data if need be."""
    from gonggam.errors import UserError
    from pipeline.recipe import check_stage, load_recipe
    from pipeline.run import Run
    from pipeline.train.plan import Planner
    from pipeline.train.plan_machine import gpu_named

    loaded = load_recipe(recipe, overrides or [])
    stages = [check_stage(only, loaded)] if only else loaded.stages
    stages = [name for name in stages if name in ("sft", "dpo")]
    if not stages:
        raise UserError("there is nothing to plan", "only sft and dpo are planned", file=loaded.file)
    machines = [gpu_named(name) for name in gpu or ["a100-80gb"]]
    run = Run(runs / loaded.name)
    with _prepared(loaded, run) as prepared:
        tokenizer = _tokenizer(loaded, run)
        system = _system(loaded)
        planner = Planner(
            loaded, prepared, gpus=gpus, sharded=sharded, config=config, tokenizer=tokenizer, system=system
        )
        if planner.shipped:
            console.print(
                f"[yellow]estimate[/]  no config.json, so {loaded.model.base} is taken for as it is known here"
            )
        for number, machine in enumerate(machines):
            for name in stages:
                found = planner.stage(name, machine)
                if number == 0:
                    _show_data(found)
                _show_cost(planner, found)


@contextmanager
def _prepared(recipe: Recipe, run: Run) -> Iterator[Path]:
    """The recipe's prepared data: the run's own if it was made so, else made now, aside if the run has other data."""
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    lock, done = run.folder / "recipe.lock.yaml", run.manifest("prepare") is not None
    if done and lock.is_file() and load_recipe(lock).section("prepare") == recipe.section("prepare"):
        yield run.stage("prepare")
        return
    with TemporaryDirectory() as aside:
        place = Run(aside) if done else run
        execute(recipe, place, ["gonggam", *sys.argv[1:]], only="prepare", start=None, force=False)
        yield place.stage("prepare")


def _tokenizer(recipe: Recipe, run: Run) -> PreTrainedTokenizerBase | None:
    """The base model's tokenizer, or None, with a line that says so."""
    from gonggam.errors import UserError
    from pipeline.model import base_of, load_tokenizer

    if not recipe.model.base and run.manifest("tiny") is None:
        console.print("[yellow]estimate[/]  the tokenizer is not made yet (stage tiny): one token a character assumed")
        return None
    try:
        return load_tokenizer(base_of(recipe, run), settings=recipe.model)
    except UserError as error:
        console.print(f"[yellow]estimate[/]  no tokenizer, so one token a character is assumed: {error.what}")
        return None


def _system(recipe: Recipe) -> str | None:
    from pipeline.chat.options import ChatOptions
    from pipeline.prompt import system_prompt

    return system_prompt((recipe.chat or ChatOptions()).system)


def _show_data(found: StagePlan) -> None:
    rows, options = found.rows, found.options
    table = Table(
        title=f"{found.name}: data{'' if rows.exact else ' (estimated)'}", title_justify="left", show_header=False
    )
    about = "" if options.max_length is None else f" than max_length {options.max_length}"
    for label, value in (
        *([("pairs", f"{rows.pairs:,}")] if rows.pairs else []),
        ("rows", f"{len(rows.lengths):,}"),
        ("tokens", f"{rows.tokens:,}"),
        ("supervised", f"{rows.share:.1%}"),
        (f"longer{about}", f"{rows.over:,}"),
        ("replies that do not fit", f"{rows.lost:,}"),
        (f"padding, batches of {options.batch}", f"{found.padded.waste:.1%}"),
        ("gaps with packing", f"{found.dense.waste:.1%} of {found.dense.count:,} bins"),
        ("optimiser steps", f"{found.steps:,} ({found.epochs:.4g} epochs)"),
        (
            "trainable parameters",
            f"{found.trainable:,} of {found.parameters:,} ({found.trainable / found.parameters:.2%})",
        ),
    ):
        table.add_row(label, value)
    console.print(table)
    if rows.lost:
        console.print(f"[red]training would refuse {rows.lost} rows[/]: raise max_length or drop them in prepare")


def _show_cost(planner: Planner, found: StagePlan) -> None:
    from pipeline.train.plan_machine import GIB

    gpu, options = found.gpu, found.options
    how = [str(options.dtype).removeprefix("torch."), options.quantization, options.optim]
    how += ["checkpointing"] * options.checkpointing + ["packing"] * options.packing
    how += [f"split over {planner.gpus}"] * (planner.sharded and planner.gpus > 1)
    if found.apart:
        console.print(f"[yellow]{found.name}: padded batches[/], since {found.apart}")
    table = Table(title=f"{found.name} on {gpu.name}: {', '.join(how)}", title_justify="left", show_header=False)
    for kind, size in found.memory.items():
        table.add_row(kind, f"{size / GIB:8.2f} GiB")
    table.add_row("[bold]peak[/]", f"[bold]{found.peak / GIB:8.2f} GiB[/] of {gpu.usable / GIB:.1f} usable")
    table.add_row("training", f"about {timedelta(seconds=round(found.seconds))} ({found.flops:.2e} operations)")
    console.print(table)
    if found.fits:
        console.print(f"[green]fits[/] {gpu.name}")
    elif (better := planner.advice(found)) is None:
        console.print(
            f"[red]does not fit[/] {gpu.name}, whatever is changed: take a larger one or a smaller base model"
        )
    else:
        console.print(
            f"[red]does not fit[/] {gpu.name}; {better[1].peak / GIB:.1f} GiB with: {' '.join(better[0])}", style=None
        )


_COLOURS = {"supervised": "black on green3", "context": "default", "padding": "bright_black"}


def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=1, help="how many rows")] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test")] = "train",
    runs: Runs = Path("runs"),
) -> None:
    """Training rows as tokens, coloured by supervised, context and padding."""
    from rich.text import Text

    from gonggam.errors import UserError
    from pipeline.model import base_of, load_tokenizer
    from pipeline.recipe import load_recipe
    from pipeline.run import Run
    from pipeline.train.preview import SHOWN_AS
    from pipeline.train.preview import preview as rows_of

    loaded = load_recipe(recipe, overrides or [])
    run = Run(runs / loaded.name)
    if not loaded.model.base and run.manifest("tiny") is None:
        hint = f"run this first: gonggam run {recipe} --only prepare; gonggam run {recipe} --only tiny"
        raise UserError("the tokenizer of this recipe is not made yet", hint, file=loaded.file)
    tokenizer = load_tokenizer(base_of(loaded, run), settings=loaded.model)
    max_length = loaded.sft.arguments.get("max_length", 1024) if loaded.sft else None
    with _prepared(loaded, run) as prepared:
        rows = rows_of(tokenizer, prepared, split, n, system=_system(loaded), max_length=max_length)
    console.print(Text.assemble(*((f" {role} ", style) for role, style in _COLOURS.items()), "  ·  one | a token"))
    for number, row in enumerate(rows, 1):
        told = ", ".join(f"{count} {role}" for role, count in row.counts.items())
        console.rule(f"row {number}: {told}", align="left")
        shown = Text()
        for text, role in row.tokens:
            shown.append(text, style=_COLOURS[role]).append("|" if role != "padding" else "", style="bright_black")
        console.print(shown)
    for token, name in SHOWN_AS.items():
        if any(name == text for row in rows for text, _ in row.tokens):
            console.print(f"{name} is this tokenizer's {token}")


def curves(
    folder: RunFolder,
) -> None:
    """Draw the training curves of every finished stage: curves.html and curves.png in its folder."""
    from gonggam.errors import UserError
    from pipeline.run import Run
    from pipeline.train.curves import write_curves

    run, written = Run(folder), []
    for name in ("tiny", "classify", "style", "sft", "dpo"):
        if manifest := run.manifest(name):
            history = manifest["metrics"].get("history", ())
            written += write_curves(run.stage(name), history, title=f"{folder.name} {name}")
    if not written:
        raise UserError("no finished training stage here", "name a run folder such as runs/demo", file=folder)
    for path in written:
        console.print(str(path))


def merge(
    folder: RunFolder,
    out: Annotated[Path, typer.Option(help="the new folder")],
    stage: Annotated[str | None, typer.Option(help="sft or dpo; by default the last one done")] = None,
    tolerance: Annotated[float | None, typer.Option(help="largest difference of logits, of the largest logit")] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="also convert with llama.cpp's converter")] = False,
    push_to: Annotated[str | None, typer.Option("--push", help="USER/NAME of a hub repository to upload to")] = None,
) -> None:
    """Merge a run's adapter into its base: safetensors, proven to say the same, with a model card."""
    from gonggam.errors import UserError
    from pipeline.recipe import load_recipe
    from pipeline.recipe.sections import MergeOptions
    from pipeline.run import Run
    from pipeline.train import merge as merging

    lock = folder / "recipe.lock.yaml"
    if not lock.is_file():
        raise UserError("no run folder (recipe.lock.yaml is missing)", "name one such as runs/demo", file=folder)
    recipe = load_recipe(lock)
    options = recipe.merge or MergeOptions()
    converter = merging.find_converter() if gguf or options.gguf else None
    if repository := push_to or options.push_to_hub:
        merging.check_hub()
    proof = merging.merge(recipe, Run(folder), out, stage=stage, tolerance=tolerance)
    console.print(
        f"{proof['stage']} merged into {out}: logits differ by {proof['difference']:.1e} of the largest "
        f"(allowed {proof['tolerance']:.0e}, {proof['prompts']} prompts, {proof['dtype']})"
    )
    if converter:
        console.print(f"gguf  {merging.to_gguf(out, converter)}")
    if repository:
        console.print(f"hub   {merging.push(out, repository, private=options.private)}")


def sweep(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Train every candidate of the recipe's sweep section, compare them, and name the winner."""
    from pipeline.recipe import load_recipe, required
    from pipeline.train.sweep import sweep as work
    from pipeline.train.sweep_report import label, table

    loaded = load_recipe(recipe, overrides or [])
    found = work(recipe, overrides or [], runs, report=lambda line: console.print(line, markup=False))
    shown = Table(title=f"sweep {loaded.name}", title_justify="left")
    rows = table(required(loaded.sweep), found)
    for name in rows[0]:
        shown.add_column(name, justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*("–" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(shown)
    place = runs / loaded.name / "sweep"
    console.print(f"winner  [bold]{label(found[0])}[/]  ({place / found[0].name})")
    console.print(f"report  {place / 'sweep.html'}")
