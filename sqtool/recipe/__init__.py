"""The recipe: reading it, checking it, and the JSON Schema that editors use."""

from __future__ import annotations

from sqtool.recipe.load import LoadedRecipe, find_recipe, load_recipe, project_root
from sqtool.recipe.model import Recipe, json_schema

__all__ = ["LoadedRecipe", "Recipe", "find_recipe", "json_schema", "load_recipe", "project_root"]
