"""`gonggam serve`: the API and the page around a counsellor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gonggam.errors import UserError
from pipeline.cli_arguments import MemoryOf, Where
from pipeline.serve.options import ServeOptions

LOCK = "recipe.lock.yaml"


def serve(
    where: Where = "runs/demo",
    overrides: Annotated[list[str] | None, typer.Argument(help="serve.key=value ...")] = None,
    run: MemoryOf = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on; 0: any that is free")] = None,
    workers: Annotated[int | None, typer.Option(help="processes")] = None,
    accounts: Annotated[bool | None, typer.Option(help="let people log in")] = None,
    database: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL of the database", envvar="GONGGAM_DATABASE")
    ] = None,
) -> None:
    """Serve a counsellor; options stand before the recipe's serve: section."""
    given = {"host": host, "port": port, "workers": workers, "accounts": accounts, "database": database}
    settings = _settings(run or Path(where), overrides or [], {k: v for k, v in given.items() if v is not None})
    from pipeline.serve.server import Plan, serve

    serve(Plan(where, run, settings))


def _settings(folder: Path, overrides: list[str], given: dict[str, Any]) -> ServeOptions:
    """The run's `serve:` section, under overrides, under the command's own options."""
    from pydantic import ValidationError

    if strange := [text for text in overrides if not text.startswith("serve.")]:
        raise UserError(f"not a setting of the service: {strange[0]!r}", "write serve.KEY=VALUE; see docs/recipes.md")
    try:
        return ServeOptions.model_validate({**_written(folder, overrides), **given})
    except ValidationError as error:
        first = error.errors()[0]
        hint = "see docs/recipes.md, serve"
        raise UserError(f"serve.{'.'.join(map(str, first['loc']))}: {first['msg']}", hint) from error


def _written(folder: Path, overrides: list[str]) -> dict[str, Any]:
    import yaml

    from pipeline.recipe import load_recipe

    if not (folder / LOCK).is_file():  # a bare model or a model server
        pairs = [text.removeprefix("serve.").partition("=") for text in overrides]
        return {key: yaml.safe_load(value) for key, _, value in pairs}
    section = load_recipe(folder / LOCK, overrides).serve
    return section.model_dump() if section else {}
