"""What `inconclusive: allow` covers: that these items cannot tell, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sqtool.errors import EXIT_INCONCLUSIVE, EXIT_REFUSED, EXIT_RELEASED
from sqtool.gate.acceptance import json_exit_code, json_undecided
from sqtool.gate.explain import explain
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from sqtool.gate.verdict import Verdict

Write = Callable[..., Path]
N = 400
GATE = GateSpec.for_metrics(["recall.m"], inconclusive="allow")
GOOD = [0.0] * 40 + [1.0] * 360


def unsteady(write: Write) -> Path:
    """A second set of the baseline's answers, of which 12 are scored otherwise."""
    return write("c", {"m": [1.0] * 6 + [0.0] * 34 + [0.0] * 6 + [1.0] * 354})


def decides_alike(verdict: Verdict, code: int) -> None:
    assert verdict.exit_code == json_exit_code(json.loads(verdict.to_json())) == code
    assert verdict.accepted == (code == EXIT_RELEASED)
    assert verdict.undecided == json_undecided(json.loads(verdict.to_json()))


def test_an_unsteady_engine_does_not_release_what_regressed(write_records: Write) -> None:
    left, right = write_records("a", {"m": GOOD}), write_records("b", {"m": [0.0] * N})
    verdict = judge(GATE, left, right, control=unsteady(write_records))
    assert (verdict.outcome, verdict.metric("recall.m").outcome) == ("INCONCLUSIVE", "REGRESSED")
    decides_alike(verdict, EXIT_INCONCLUSIVE)
    assert "does not cover" in explain(verdict)
    assert "cannot tell" not in explain(verdict)


@pytest.mark.parametrize("candidate", [GOOD, [0.0] * 44 + [1.0] * 356])
def test_no_verdict_on_an_unsteady_engine_is_allowed(write_records: Write, candidate: list[float]) -> None:
    left, right = write_records("a", {"m": GOOD}), write_records("b", {"m": candidate})
    verdict = judge(GATE, left, right, control=unsteady(write_records))
    assert verdict.outcome == "INCONCLUSIVE"
    decides_alike(verdict, EXIT_INCONCLUSIVE)


def test_what_the_items_cannot_tell_is_allowed(write_records: Write) -> None:
    left, right = write_records("a", {"m": GOOD}), write_records("b", {"m": [0.0] * 44 + [1.0] * 356})
    verdict = judge(GATE, left, right)
    assert verdict.outcome == "INCONCLUSIVE"
    decides_alike(verdict, EXIT_RELEASED)
    assert "cannot tell" in explain(verdict)
    refused = judge(GATE.model_copy(update={"inconclusive": "refuse"}), left, right)
    decides_alike(refused, EXIT_INCONCLUSIVE)


def test_a_regression_and_a_pass_need_no_allowance(write_records: Write) -> None:
    left = write_records("a", {"m": GOOD})
    decides_alike(judge(GATE, left, write_records("b", {"m": [0.0] * N})), EXIT_REFUSED)
    decides_alike(judge(GATE, left, write_records("b", {"m": GOOD})), EXIT_RELEASED)


def test_a_regressed_part_in_an_inconclusive_verdict_is_never_allowed(write_records: Write) -> None:
    """No judge writes such a verdict without a control; one that says so all the same releases nothing."""
    left, right = write_records("a", {"m": GOOD}), write_records("b", {"m": [0.0] * N})
    verdict = judge(GATE, left, right).model_copy(update={"outcome": "INCONCLUSIVE"})
    decides_alike(verdict, EXIT_INCONCLUSIVE)
