"""The A/A control: a steady engine, one that flips, one that drifts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from sqtool.errors import EXIT_INCONCLUSIVE, DataError
from sqtool.gate.explain import explain
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from sqtool.gate.verdict import Verdict

Write = Callable[..., Path]
GATE = GateSpec.for_metrics(["recall.m"])
N = 600
RIGHT = [1.0] * N


def verdict(left: Path, control: Path) -> Verdict:
    """The candidate is perfect, so whatever is not PASS is the control's doing."""
    candidate = left.parent.parent / "candidate" / "records"
    candidate.mkdir(parents=True, exist_ok=True)
    (candidate / "recall.jsonl").write_bytes((left / "recall.jsonl").read_bytes())
    return judge(GATE, left, candidate, control=control)


def again(folder: Path, like: Path, other: int = 0) -> Path:
    """Give the control the baseline's words, except for the first `other` items."""
    words = [json.loads(line)["output"] for line in (like / "recall.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (folder / "recall.jsonl").read_text().splitlines()]
    for at, row in enumerate(rows):
        row["output"] = words[at] if at >= other else {"text": "another answer"}
    (folder / "recall.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_same_hundred_answers_suffice(write_records: Write) -> None:
    left = write_records("a", {"m": RIGHT})
    result = verdict(left, again(write_records("c", {"m": RIGHT[:100]}), left))
    assert result.control is not None
    assert (result.outcome, result.control.deterministic, result.control.items) == ("PASS", True, 100)
    assert "the same 100 answers twice" in explain(result)


def test_fewer_than_a_hundred_prove_nothing(write_records: Write) -> None:
    left = write_records("a", {"m": RIGHT})
    result = verdict(left, again(write_records("c", {"m": RIGHT[:99]}), left))
    assert result.control is not None
    assert not result.control.deterministic
    assert (result.outcome, result.exit_code) == ("INCONCLUSIVE", EXIT_INCONCLUSIVE)


@pytest.mark.parametrize(("flips", "stable"), [(0, True), (1, True), (2, False), (30, False)])
def test_flips_up_to_half_the_margin(write_records: Write, flips: int, stable: bool) -> None:
    left = write_records("a", {"m": RIGHT})
    control = write_records("c", {"m": [0.0] * flips + RIGHT[flips:]})
    result = verdict(left, again(control, left, other=max(flips, 5)))
    assert result.control is not None
    (metric,) = result.control.metrics
    expected = stats.binomtest(flips, N).proportion_ci(0.90, "exact").high
    assert metric.upper == pytest.approx(expected, rel=1e-6)
    assert (result.control.stable, result.outcome) == (stable, "PASS" if stable else "INCONCLUSIVE")
    if not stable:
        assert result.reasons[0].startswith("recall.m: unstable_engine")
        assert "too unsteady" in explain(result)


def test_a_change_in_either_direction(write_records: Write) -> None:
    for one, two in ((RIGHT, [0.0] * 60 + RIGHT[60:]), ([0.0] * 60 + RIGHT[60:], RIGHT)):
        left = write_records("a", {"m": one})
        result = verdict(left, again(write_records("c", {"m": two}), left, other=60))
        assert result.control is not None
        assert result.control.metrics[0].reason == "regressed"


def test_an_unsteady_engine_outweighs_a_regression(write_records: Write) -> None:
    rng = random.Random(0)
    left = write_records("a", {"m": RIGHT})
    noisy = [float(rng.random() > 0.2) for _ in range(N)]
    control = again(write_records("c", {"m": noisy}), left, other=N)
    result = judge(GATE, left, write_records("b", {"m": [0.0] * N}), control=control)
    assert result.metric("recall.m").outcome == "REGRESSED"
    assert result.outcome == "INCONCLUSIVE"


def test_scores_between(write_records: Write) -> None:
    halves = [0.5] * N
    left = write_records("a", {"m": halves})
    close = again(write_records("c", {"m": [0.501] * N}), left, other=N)
    assert verdict(left, close).outcome == "PASS"
    far = again(write_records("c", {"m": [0.52] * 300 + [0.48] * 300}), left, other=N)
    assert verdict(left, far).outcome == "INCONCLUSIVE"


def test_items_of_another_set(write_records: Write) -> None:
    left = write_records("a", {"m": RIGHT})
    with pytest.raises(DataError, match="not one of the baseline's"):
        verdict(left, write_records("c", {"m": RIGHT[:3]}, ids=["x", "y", "z"]))


def test_log_likelihoods_that_decide_otherwise_are_another_answer(write_records: Write) -> None:
    """A multiple choice by log-likelihood may have no text to compare; digits behind the decision do not count."""
    left = write_records("a", {"m": RIGHT})
    control = write_records("c", {"m": [0.0, *RIGHT[1:]]})
    for folder, digits in ((left, 0.0), (control, 1e-6)):
        rows = [json.loads(line) for line in (folder / "recall.jsonl").read_text().splitlines()]
        for row in rows:
            row["output"] = {"text": "", "loglikelihoods": [{"logprob": -1.0 - digits, "tokens": 1, "greedy": True}]}
        (folder / "recall.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = verdict(left, control)
    assert result.control is not None
    assert result.control.different_answers == 1
