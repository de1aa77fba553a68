"""Where the shipped recipes lie."""

from __future__ import annotations

from pathlib import Path

from gonggam.errors import UserError


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside an installed package, beside the packages in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def list_recipes() -> list[Path]:
    """The shipped recipes, by name."""
    return sorted(recipes_folder().glob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe, given as a path or by the name of a shipped one.

    Raises:
        UserError: there is no such file and no such shipped recipe.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError("this is a folder, not a recipe", "name the YAML file in it", file=path)
    shipped = {recipe.stem: recipe for recipe in list_recipes()}
    if str(path.parent) in (".", "recipes") and path.name.removesuffix(".yaml") in shipped:
        return shipped[path.name.removesuffix(".yaml")]
    from pipeline.recipe.check import nearest

    near = nearest(path.name.removesuffix(".yaml"), list(shipped))
    raise UserError("recipe not found", near or f"shipped recipes: {', '.join(shipped)}", file=path)
