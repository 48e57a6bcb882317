"""What the table says of arrays is what the gate says of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate.damage import table
from benchmarks.gate.damage.damages import TARGET, VARIANTS
from benchmarks.gate.damage.judging import (
    Scores,
    Shares,
    Task,
    by_gate,
    by_threshold,
    by_unpaired_z,
    gate_spec,
    load_tasks,
    resample,
    scored,
    shares,
)
from benchmarks.gate.damage.measure import evaluation
from benchmarks.gate.damage.stale import caught
from sqtool.files import canonical_json
from sqtool.gate.judge import judge

TASKS = {"tool_calls": ("schema_valid", "call_match"), "tasks": ("exact_match",), "recall": ("exact_match",)}


def write(folder: Path, scores: Mapping[str, Mapping[str, list[float | None]]]) -> Path:
    """Records of every task; None is an item without that metric."""
    (folder / "records").mkdir(parents=True)
    for task, metrics in scores.items():
        rows = zip(*metrics.values(), strict=True)
        lines = [
            {
                "id": f"{i:05d}",
                "cluster": None,
                "scores": {k: v for k, v in zip(metrics, r, strict=True) if v is not None},
            }
            for i, r in enumerate(rows)
        ]
        (folder / "records" / f"{task}.jsonl").write_text("".join(canonical_json(line) + "\n" for line in lines))
    return folder


def sides(folder: Path, seed: int, loss: float, n: int) -> tuple[Path, Path]:
    """Random records; the candidate loses each right answer with probability `loss`."""
    rng = np.random.default_rng(seed)
    left: dict[str, dict[str, list[float | None]]] = {}
    right: dict[str, dict[str, list[float | None]]] = {}
    for task, metrics in TASKS.items():
        for metric in metrics:
            b = (rng.random(n) < 0.95).astype(float)
            c = np.where(rng.random(n) < loss, 0.0, b)
            hidden = np.arange(n) % 7 == 0 if metric == "schema_valid" else np.zeros(n, bool)
            for side, values in ((left, b), (right, c)):
                side.setdefault(task, {})[metric] = [None if h else v for h, v in zip(hidden, values, strict=True)]
    return write(folder / "baseline", left), write(folder / "candidate", right)


def test_the_gate_on_arrays_is_the_gate_on_files(tmp_path: Path) -> None:
    spec, seen = gate_spec(), set()
    for seed in range(24):
        n, loss = (60, 600)[seed % 2], (0.0, 0.01, 0.02, 0.05)[seed // 2 % 4]
        baseline, candidate = sides(tmp_path / str(seed), seed, loss, n)
        outcome = by_gate(scored(load_tasks(baseline, candidate, spec), spec), spec)
        assert outcome == judge(spec, baseline, candidate).outcome
        seen.add(outcome)
    assert seen == {"PASS", "REGRESSED", "INCONCLUSIVE"}


def one(wrong: int, n: int = 1000) -> dict[str, Scores]:
    return {"a.b": (np.ones(n), np.where(np.arange(n) < wrong, 0.0, 1.0))}


def test_the_threshold_refuses_from_exactly_one_point() -> None:
    assert [by_threshold(one(wrong)) for wrong in (0, 9, 10, 11)] == [False, False, True, True]
    assert not by_threshold({"a.b": one(50)["a.b"][::-1]})


def test_the_unpaired_test_is_lm_evals_two_standard_errors() -> None:
    n = 1000
    for wrong_left in (0, 50, 300):
        b = np.where(np.arange(n) < wrong_left, 0.0, 1.0)
        for wrong in (0, 1, 3, 20, 60, 320, 340):
            c = np.where(np.arange(n) < wrong, 0.0, 1.0)
            p, q = 1 - wrong_left / n, 1 - wrong / n
            error = np.sqrt((p * (1 - p) + q * (1 - q)) / (n - 1))
            assert by_unpaired_z({"a.b": (b, c)}, 0.05) == (p - q > 1.6448536269514722 * error)


def test_dilution_mixes_whole_items() -> None:
    n = 4000
    b, c = np.ones(n), np.zeros(n)
    task = Task(n, {"t.x": (b, c), "t.y": (b, c)})
    rng = np.random.default_rng(0)
    (none,), (whole,), (half,) = (resample([task], rng, n, keep) for keep in (0.0, 1.0, 0.5))
    assert none.scores["t.x"][1].all()
    assert not whole.scores["t.x"][1].any()
    assert half.scores["t.x"][1].mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(half.scores["t.x"][1], half.scores["t.y"][1])


def test_shares_are_of_the_protocols_resamples_and_repeat(tmp_path: Path) -> None:
    spec = gate_spec()
    tasks = load_tasks(*sides(tmp_path, 3, 0.2, 80), spec)
    found = shares(tasks, spec, "some variant")
    assert found == shares(tasks, spec, "some variant")
    assert found.passed + found.regressed + found.inconclusive == pytest.approx(1)
    assert found.regressed == found.threshold == found.unpaired == 1


def row(
    name: str, worst: float, passed: float, regressed: float, group: str = "damaged", items: float = 0.1
) -> table.Row:
    found = Shares(passed, regressed, 1 - passed - regressed, 0.0, 0.0)
    return table.Row(name, group, {"a.b": -0.02 * worst}, items, worst, found, found if worst > 1 else None)


@pytest.mark.parametrize(
    ("worst", "kind"),
    [
        (0.0, "under one margin"),
        (0.749, "under one margin"),
        (0.75, "about one margin"),
        (1.25, "about one margin"),
        (1.26, "between"),
        (1.99, "between"),
        (2.0, ">= 2 margins"),
    ],
)
def test_classes(worst: float, kind: str) -> None:
    assert row("x", worst, 0, 0).kind == kind
    assert row("x", worst, 0, 0, group="clean").kind == "clean"
    assert row("x", worst, 0, 0, items=0.0).kind == "no observable effect"


def met(rows: list[table.Row]) -> list[bool]:
    return [target.met for target in table.targets(rows)]


def test_targets_are_literal() -> None:
    good = [row("big", 3, 0.0, 0.95), row("at", 1.1, 0.05, 0.4), row("ok", 0.1, 0.9, 0.05, group="clean")]
    assert met(good) == [True, True, True, True]
    assert met([row("big", 3, 0.0, 0.945), *good[1:]]) == [False, True, True, True]
    assert met([good[0], row("at", 1.1, 0.055, 0.4), good[2]])[1] is False
    assert met([*good[:2], row("bad", 0.1, 0.9, 0.055, group="clean")])[3] is False
    # One variant of many above resampling error is a miss, even where all together are not.
    many = [row(f"v{i}", 3, 0.0, 1.0) for i in range(9)]
    assert met([*many, row("odd", 3, 0.095, 0.9)])[2] is False
    assert met([*many, row("odd", 3, 0.09, 0.9)])[2] is True
    assert met([]) == [False] * 4


def test_one_variant_is_asked_as_served() -> None:
    asked = {name: evaluation(variant, None).generation for name, variant in VARIANTS.items()}
    assert [name for name, generation in asked.items() if generation.as_served] == ["temperature_served"]
    assert all(generation.greedy for name, generation in asked.items() if name != "temperature_served")


def test_the_pipeline_takes_no_other_models_baseline() -> None:
    draft = TARGET.with_name("draft")
    assert caught(TARGET, draft) == "content of the model changed"
    assert caught(TARGET, TARGET) == ""
