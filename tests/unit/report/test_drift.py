"""Drift, changed answers and whether the engine computes the same, as the report tells them."""

from __future__ import annotations

from typing import Any

import pytest

from sqtool.report.drift import add_changes, add_drift
from sqtool.report.facts import Facts
from tests.unit.report.conftest import DRIFT

SIDE = {"texts": 50, "positions": 900, "logprob_p99": 0.0612, "logprob_max": 0.2, "top1_near": 0.9989, "passed": True}
STABLE = {"nan": 0, "inf": 3, "activation_max": 1234.5, "activation_max_layer": "model.layers.2"}


def told(**more: Any) -> list[str]:
    facts = Facts(name="x", headline="PASSED")
    add_drift(facts, {**DRIFT, **more})
    assert facts.drift is not None
    return list(facts.drift.notes)


@pytest.mark.parametrize(
    ("comparable", "words"),
    [(True, "The engine computes the same"), (False, "NOT COMPARABLE WITH THE ENGINE"), (None, "Not checked")],
)
def test_whether_drift_is_of_what_the_engine_computes(comparable: bool | None, words: str) -> None:
    candidate = {"problem": "the engine was not asked", "passed": None} if comparable is None else SIDE
    (note,) = [
        n for n in told(check={"baseline": SIDE, "candidate": candidate, "comparable": comparable}) if words in n
    ]
    assert "0.0612 nats at 99 % of 900 positions, top token near at 99.89 %" in note
    assert ("the engine was not asked" in note) == (comparable is None)
    assert not any(words in note for note in told())


def test_stability() -> None:
    notes = told(stability={**STABLE, "fp8_saturation": 0.0125, "k_saturation": 0.0})
    assert "Largest activation 1234 behind model.layers.2; 0 NaN and 3 infinities in the layers." in notes
    assert "Beyond what FP8 can say, in the worst layer: fp8 1.25 %, k 0 % of the values." in notes
    gone = told(stability={**STABLE, "activation_max": None, "activation_max_layer": None, "nan": 9})
    assert "9 NaN and 3 infinities in the layers." in gone
    assert not any("FP8" in note for note in gone)


def test_changed_answers() -> None:
    facts = Facts(name="x", headline="PASSED")
    counts = {"right_to_wrong": 3, "wrong_to_right": 2, "right": 90, "wrong": 5}
    spread = {"p10": 1.0, "p50": 7.5, "p90": 20.0}
    add_changes(
        facts,
        {
            "t": {
                "items": 100,
                "flips": {"match": counts},
                "divergence": {"same": 80, "different": 20, "characters": {"p50": 30.0}, "tokens": spread},
            },
            "drawn": {"items": 100, "flips": {"match": counts}},
            "unmeasured": {"items": 1, "flips": {}, "divergence": {"same": 1, "different": 0}},
        },
    )
    assert facts.changes is not None
    assert facts.changes.rows == (
        ("t.match", "3", "2", "80 of 100", "token 7.5"),
        ("drawn.match", "3", "2", "", ""),
    )
    add_changes(nothing := Facts(name="x", headline="PASSED"), None)
    assert nothing.changes is None
