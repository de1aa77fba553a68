"""The ``gonggam`` command. Subcommands import what they need when they run, so that each starts at once."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gonggam.errors import Interrupted, UserError, UserErrors
from gonggam.files import as_user_error
from pipeline import cli_answer, cli_chat, cli_data, cli_db, cli_eval, cli_memory, cli_recipe, cli_serve, cli_train
from pipeline.cli_arguments import Overrides, RecipeFile, RunFolder, Runs

errors = Console(stderr=True, soft_wrap=True, highlight=False)


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="do this stage alone")] = None,
    start: Annotated[str | None, typer.Option("--from", help="do this stage and all later ones anew")] = None,
    force: Annotated[bool, typer.Option(help="do the stages even if they are up to date")] = False,
    runs: Runs = Path("runs"),
    browser: Annotated[bool, typer.Option("--open", help="open the report, where there is a desktop")] = False,
) -> None:
    """Bring a run up to date with its recipe: do what is missing, go on with what was interrupted, skip the rest."""
    from pipeline.card import show_card
    from pipeline.crew import Crew
    from pipeline.execute import execute
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    loaded = load_recipe(recipe, overrides or [])
    folder = Run(runs / loaded.name)
    worked = execute(loaded, folder, ["gonggam", "run", *sys.argv[1:]], only=only, start=start, force=force)
    if Crew().is_main:
        show_card(folder, loaded, up_to_date=not worked, browser=browser)


def report(folder: RunFolder) -> None:
    """Show a run's card again and say where its report lies."""
    from pipeline.card import show_card
    from pipeline.recipe import load_recipe
    from pipeline.run import Run

    lock = folder / "recipe.lock.yaml"
    if not lock.is_file():
        raise UserError("no run folder (recipe.lock.yaml is missing)", "name one such as runs/demo", file=folder)
    show_card(Run(folder), load_recipe(lock))


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A counselling language model out of Korean dialogues: train it, talk to it, serve it, judge it.",
)
for command in (
    *(run, report, cli_train.plan, cli_train.preview, cli_train.curves, cli_train.sweep, cli_train.merge),
    *(cli_chat.chat, cli_chat.ask, cli_answer.answer, cli_serve.serve),
):
    app.command()(command)
for name, group in (
    ("recipe", cli_recipe.app),
    ("data", cli_data.app),
    ("db", cli_db.app),
    ("eval", cli_eval.app),
    ("bench", cli_memory.app),
):
    app.add_typer(group, name=name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors a user can mend come as one line each and exit code 2."""
    _quiet()
    try:
        app(args=arguments)
    except BrokenPipeError:
        sys.exit(0)
    except Interrupted:
        if os.environ.get("RANK", "0") == "0":
            errors.print("stopped after a full checkpoint; the same command goes on from here")
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        found = as_user_error(error) if isinstance(error, OSError) else error
        if not isinstance(found, UserError):
            traceback.print_exc()
            errors.print("this is a fault of gonggam, not yours; please report it with the lines above")
            sys.exit(1)
        for one in found.errors if isinstance(found, UserErrors) else (found,):
            errors.print(f"[red]error[/] {escape(str(one))}")
        sys.exit(2)


def _quiet() -> None:
    """No telemetry, and of the libraries' chatter only errors: the pipeline reports progress itself."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
