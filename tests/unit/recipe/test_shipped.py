"""Every shipped recipe loads, says what it is, and can be planned on the reference model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqtool.pipeline import job_of, make_plan
from sqtool.recipe import load_recipe

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NAMES = {"awq4", "gptq4", "smoothquant-w8a8", "fp8-dynamic", "rtn4-refused"}


def test_all_are_there() -> None:
    assert {path.stem for path in RECIPES} >= NAMES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_loads_and_explains_itself(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.name == path.stem
    assert loaded.recipe.description
    assert path.read_text(encoding="utf-8").startswith("#")
    assert len([name for name, rule in loaded.recipe.gate.metrics.items() if rule.gated]) <= 4


@pytest.mark.skipif(not (ROOT / "artifacts/reference/target/config.json").is_file(), reason="no reference model here")
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_plans(path: Path) -> None:
    plan = make_plan(job_of(load_recipe(path)))
    assert [p for p in plan.problems if "vLLM environment" not in str(p)] == []
    assert [step.stage.name for step in plan.steps][-1] == "release"
    actions = {step.stage.name: step.action for step in plan.steps}
    needs_data = any(step.method.needs_calibration for step in load_recipe(path).recipe.quantize.methods)
    assert (actions["calibrate"] == "skip") is not needs_data
