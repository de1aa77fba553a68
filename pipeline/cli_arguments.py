"""Arguments and options that mean the same in several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[str, typer.Argument(help="recipe file, or the name of a shipped recipe")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...", show_default=False)]
Runs = Annotated[Path, typer.Option(help="where run folders lie")]
RunFolder = Annotated[Path, typer.Argument(help="a run folder, e.g. runs/demo")]
Where = Annotated[str, typer.Argument(help="run folder, model folder, hub id or openai:http://host:port/v1#model")]
MemoryOf = Annotated[
    Path | None, typer.Option("--run", help="run folder whose memory and settings a model server uses")
]
Persona = Annotated[str | None, typer.Option("--persona", help="manner of speech (말투)")]
