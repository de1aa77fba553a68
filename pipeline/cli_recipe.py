"""`gonggam recipe`: check, show, list, schema."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from pipeline.cli_arguments import Overrides, RecipeFile

app = typer.Typer(help="Check, show and list recipes.", no_args_is_help=True)


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Check a recipe and say all that is wrong with it."""
    from pipeline.recipe import load_recipe

    found = load_recipe(recipe, overrides or [])
    typer.echo(f"{found.file}: no errors. Stages: {', '.join(found.stages)}")


@app.command()
def show(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print a recipe with inherited values, overrides and defaults filled in."""
    import yaml

    from pipeline.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or []).resolved()
    yaml.safe_dump(resolved, sys.stdout, allow_unicode=True, sort_keys=False, width=120)


@app.command("list")
def list_() -> None:
    """List the shipped recipes."""
    from pipeline.recipe import list_recipes

    for path in list_recipes():
        first = path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")
        typer.echo(f"{path.stem:<22} {first}")


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="the reference page instead of the JSON Schema")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from pipeline.recipe import recipe_schema
    from pipeline.recipe.docs import recipe_markdown

    typer.echo(recipe_markdown() if markdown else json.dumps(recipe_schema(), ensure_ascii=False, indent=2), nl=False)
