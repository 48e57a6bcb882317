"""What must hold for the whole analysis, whatever was measured."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqtool.speculate.analyse import analyse
from sqtool.speculate.spec import SpeculateSpec
from tests.unit.speculate.synthetic import FOUR, Settings, Truth, write_stage

SPEC = SpeculateSpec.model_validate({"slo": {"e2e_ms": 500}})
few = settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def run(folder: Path, spec: SpeculateSpec = SPEC) -> dict[str, Any]:
    return analyse(folder, spec, replicates=200)


def fresh(tmp_path: Path, made: Settings) -> Path:
    shutil.rmtree(tmp_path / "stage", ignore_errors=True)
    return write_stage(tmp_path / "stage", made)


@few
@given(seed=st.integers(0, 10**6), rounds=st.integers(1, 2))
def test_identical_arms_gain_nothing(tmp_path: Path, seed: int, rounds: int) -> None:
    folder = fresh(tmp_path, Settings(arms={"baseline": Truth("baseline", good=0.8)}, seed=seed, rounds=rounds))
    for name, truth in FOUR.items():
        if name != "baseline":
            shutil.copytree(folder / "arms/baseline", folder / "arms" / name)
            info = json.loads((folder / "arms" / name / "arm.json").read_text()) | {"target": truth.target}
            (folder / "arms" / name / "arm.json").write_text(json.dumps(info))
    report = run(folder)
    for entry in report["interaction"]["c8"].values():
        for name in ("quantization", "speculation", "both"):
            assert entry[name]["gain"] == 1
            assert entry[name]["ci"] in (None, [1, 1])
        assert entry["ratio"]["value"] == pytest.approx(1)
        assert entry["ratio"]["ci"] is None or entry["ratio"]["ci"] == pytest.approx([1, 1])
    for entry in report["control"]["c8"].values():
        assert entry["gain"] == 1


@few
@given(seed=st.integers(0, 10**6), shuffle=st.integers(0, 10**6))
def test_the_order_of_lines_changes_nothing(tmp_path: Path, seed: int, shuffle: int) -> None:
    folder = fresh(tmp_path, Settings(seed=seed, samples=2, requests=45, rounds=2))
    before = run(folder)
    rng = random.Random(shuffle)
    for path in folder.rglob("*.jsonl"):
        lines = path.read_text().splitlines()
        rng.shuffle(lines)
        path.write_text("".join(line + "\n" for line in lines))
    after = run(folder)
    before["traffic"]["sha256"] = after["traffic"]["sha256"]
    assert json.dumps(after) == json.dumps(before)


@few
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([0.25, 2.0, 16.0]))
def test_a_slower_clock_changes_times_and_no_gain(tmp_path: Path, seed: int, factor: float) -> None:
    one = run(fresh(tmp_path, Settings(seed=seed)), SpeculateSpec())
    other = run(fresh(tmp_path, Settings(seed=seed, step_s=0.01 * factor)), SpeculateSpec())
    for measure, entry in one["interaction"]["c8"].items():
        scaled = other["interaction"]["c8"][measure]
        assert scaled["ratio"]["value"] == pytest.approx(entry["ratio"]["value"])
        assert scaled["both"]["ci"] == (None if entry["both"]["ci"] is None else pytest.approx(entry["both"]["ci"]))
    old, new = (r["arms"]["both"]["loads"]["c8"] for r in (one, other))
    assert new["cost"]["ci"] == pytest.approx([factor * end for end in old["cost"]["ci"]])
    assert new["latency"]["e2e_ms"]["ci"]["p95"] == pytest.approx(
        [factor * end for end in old["latency"]["e2e_ms"]["ci"]["p95"]]
    )
    assert new["speculation"] == old["speculation"]


def test_a_price_scales_the_cost_and_no_ratio(tmp_path: Path) -> None:
    folder = write_stage(tmp_path, Settings())
    free, priced = (run(folder, SpeculateSpec.model_validate({"price": price})) for price in (None, {"per_hour": 7200}))
    one, other = (r["arms"]["both"]["loads"]["c8"]["cost"] for r in (free, priced))
    assert (one["unit"], other["unit"]) == ("device_seconds", "USD")
    assert other["per_accepted_answer"] == pytest.approx(2 * one["per_accepted_answer"])
    assert priced["interaction"] == free["interaction"]
