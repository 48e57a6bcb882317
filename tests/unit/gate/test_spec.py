"""What a recipe's gate section accepts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sqtool.errors import UsageError
from sqtool.gate.spec import DEFAULT_METRICS, GateSpec


def test_defaults() -> None:
    spec = GateSpec()
    assert spec.gated == DEFAULT_METRICS
    assert {rule.absolute_margin for rule in spec.metrics.values()} == {0.02}
    assert (spec.alpha, spec.inconclusive) == (0.05, "refuse")


def test_short_forms() -> None:
    spec = GateSpec.model_validate(
        {
            "metrics": {"a.x": 0.01, "a.y": "diagnostic", "b.x": {"relative": 0.05}, "b.y": None},
            "slices": ["kind", {"field": "n_tools", "require": "pass"}],
        }
    )
    assert spec.gated == ("a.x", "b.x", "b.y")
    assert [spec.metrics[name].absolute_margin for name in ("a.x", "b.x", "b.y")] == [0.01, None, 0.02]
    assert [(rule.field, rule.require) for rule in spec.slices] == [("kind", "no_harm"), ("n_tools", "pass")]
    assert GateSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metrics": {"a.x": 0}}, "greater than or equal to 0.0001"),
        ({"metrics": {"a.x": 1.0}}, "less than 1"),
        ({"metrics": {"a.x": True}}, "valid dictionary"),
        ({"metrics": {"a.x": {"max_drop": 0.1, "relative": 0.1}}}, "not both"),
        ({"metrics": {"a.x": {"relative": 0.1, "direction": "lower"}}}, "direction: higher"),
        ({"metrics": {"ax": 0.1}}, "no metric name"),
        ({"metrics": {}}, "no metric is gated"),
        ({"metrics": {"a.x": {"gated": False}}}, "no metric is gated"),
        ({"alpha": 0.5}, "less than 0.5"),
        ({"alpha": float("nan")}, "finite"),
        ({"inconclusive": "maybe"}, "'refuse' or 'allow'"),
        ({"slices": ["kind", "kind"]}, "twice"),
        ({"margin": 0.1}, "Extra inputs"),
        ({"metrics": {"a.gen_len": 0.1}, "early_stop": "both"}, "relative.*or early_stop: regressed"),
        ({"metrics": {"a.x": 0.1, "a.gen_len": None}, "early_stop": "both"}, "a.gen_len"),
    ],
)
def test_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GateSpec.model_validate(section)


@pytest.mark.parametrize(
    "section",
    [
        {"metrics": {"a.gen_len": {"relative": 0.1}}, "early_stop": "both"},
        {"metrics": {"a.gen_len": 0.1}, "early_stop": "regressed"},
        {"metrics": {"a.x": 0.1, "a.gen_len": {"max_drop": 0.1, "gated": False}}, "early_stop": "both"},
    ],
)
def test_margins_on_lengths_that_are_judged_on_one_scale(section: dict[str, Any]) -> None:
    GateSpec.model_validate(section)


def test_a_changed_spec_is_checked_as_a_whole() -> None:
    spec = GateSpec.model_validate({"metrics": {"a.gen_len": {"relative": 0.1}}, "early_stop": "both"})
    assert spec.changed(alpha=0.01).alpha == 0.01
    with pytest.raises(UsageError, match="early_stop: regressed"):
        spec.changed(metrics={"a.gen_len": spec.metrics["a.gen_len"].model_copy(update={"relative": None})})


def test_schema_has_the_short_forms() -> None:
    schema = GateSpec.model_json_schema()
    forms = schema["properties"]["metrics"]["additionalProperties"]["anyOf"]
    assert {"type": "number"} in forms
