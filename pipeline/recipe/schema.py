"""The JSON Schema of recipes, for editors, and the reference page made from it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from pipeline.recipe.sections import SECTIONS, section_model


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file.

    Nothing is required in it, since what a file leaves out may come from the recipe it extends.
    """
    sections: dict[str, Any] = {name: (section_model(name) | None, None) for name in SECTIONS}
    model = create_model(
        "Recipe",
        name=(str, Field("", description="name of the run; by default the file's name")),
        extends=(str, Field("", description="recipe that this one is laid over: a file beside it or a shipped recipe")),
        seed=(int, Field(42, ge=0, lt=2**32, description="where all randomness starts")),
        **sections,
    )
    schema = _without_required(model.model_json_schema(mode="validation"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "additionalProperties": False}


def _without_required(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_required(v) for k, v in value.items() if not (k == "required" and isinstance(v, list))}
    return [_without_required(item) for item in value] if isinstance(value, list) else value
