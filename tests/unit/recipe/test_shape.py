from __future__ import annotations

from sqtool.recipe.model import json_schema
from sqtool.recipe.shape import Shape

SHAPE = Shape(json_schema())


def test_keys_follow_references_lists_and_mappings() -> None:
    assert "quantize" in SHAPE.keys(())
    assert "max_drop" in SHAPE.keys(("gate", "metrics", "tasks.exact_match"))
    assert "scheme" in SHAPE.keys(("quantize", "methods", 0, "awq"))
    assert SHAPE.keys(("nowhere",)) == []


def test_types_and_choices() -> None:
    assert SHAPE.types(("seed",)) == {"integer"}
    assert SHAPE.types(("engine", "max_model_len")) == {"integer", "null"}
    assert "refuse" in SHAPE.choices(("gate", "inconclusive"))
    assert SHAPE.types(("engine", "dtype")) == {"string"}
