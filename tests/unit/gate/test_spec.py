"""What a recipe's gate section accepts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

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
    ],
)
def test_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GateSpec.model_validate(section)


def test_schema_has_the_short_forms() -> None:
    schema = GateSpec.model_json_schema()
    forms = schema["properties"]["metrics"]["additionalProperties"]["anyOf"]
    assert {"type": "number"} in forms
