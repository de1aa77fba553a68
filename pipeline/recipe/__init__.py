"""Recipes: one YAML file describes a whole run. Typed sections, `extends:`, overrides, all errors at once, a lock."""

from __future__ import annotations

from pipeline.recipe.find import find_recipe, list_recipes
from pipeline.recipe.load import Recipe, check_stage, load_recipe, required
from pipeline.recipe.schema import recipe_schema
from pipeline.recipe.sections import STAGES, ModelOptions, TinyOptions
from pipeline.recipe.training import DpoSection, SftSection

__all__ = [
    "STAGES",
    "DpoSection",
    "ModelOptions",
    "Recipe",
    "SftSection",
    "TinyOptions",
    "check_stage",
    "find_recipe",
    "list_recipes",
    "load_recipe",
    "recipe_schema",
    "required",
]
