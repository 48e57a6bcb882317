"""speculate.json from a folder whose truths are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqtool.speculate.analyse import analyse, recovery
from sqtool.speculate.spec import SpeculateSpec
from tests.unit.speculate.synthetic import FOUR, K, Settings, Truth, write_stage

SPEC = SpeculateSpec.model_validate({"slo": {"e2e_ms": 2000}, "price": {"per_hour": 3.6, "currency": "EUR"}})


def run(folder: Path, spec: SpeculateSpec) -> dict[str, Any]:
    return analyse(folder, spec, replicates=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stage(tmp_path_factory.mktemp("stage"), Settings(loads=("c8", "r4"), samples=3))


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return analyse(folder, SPEC)


def test_the_whole_is_json_and_the_same_again(folder: Path, report: dict[str, Any]) -> None:
    again = analyse(folder, SPEC)
    assert json.dumps(again, allow_nan=False) == json.dumps(report, allow_nan=False)


def test_head(report: dict[str, Any]) -> None:
    assert report["schema"] == "sqtool.speculate/2"
    assert report["loads"] == ["c8", "r4"]
    assert list(report["arms"]) == list(FOUR)
    assert report["traffic"] | {"sha256": ""} == {
        "source": SPEC.traffic, "sha256": "", "requests": 120, "warmup": 1, "scored": 120,
        "kinds": {"lookup": 40, "prose": 40, "tool": 40},
    }  # fmt: skip
    assert report["speculative_config"] == {"method": "draft_model", "num_speculative_tokens": K}


def inside(value: float, ends: list[float], slack: float = 0.0) -> bool:
    return ends[0] - slack <= value <= ends[1] + slack


def test_acceptance_is_the_truth(report: dict[str, Any]) -> None:
    for name, p in (("speculative", 0.7), ("both", 0.6)):
        entry = report["arms"][name]["loads"]["c8"]["speculation"]
        truth = [p ** (at + 1) for at in range(K)]
        assert entry["source"] == "answers"
        assert entry["cross_check"]["agree"] is True
        # An end of a request cuts no draft here, so the positions are those of a geometric distribution.
        for value, ends, real in zip(entry["per_position_rate"], entry["ci"]["per_position_rate"], truth, strict=True):
            assert inside(real, ends, 0.02)
            assert inside(value, ends)
        assert entry["mean_acceptance_length"] == pytest.approx(1 + sum(truth), abs=0.15)
        assert entry["acceptance_rate"] == pytest.approx(entry["accepted_tokens"] / entry["draft_tokens"])
        kinds = report["arms"][name]["loads"]["c8"]["kinds"].values()
        assert sum(kind["speculation"]["drafts"] for kind in kinds) == entry["drafts"]
    change = report["acceptance_change"]["c8"]
    for at, entry in enumerate(change["overall"]["per_position_rate"]):
        assert inside(0.6 ** (at + 1) - 0.7 ** (at + 1), entry["ci"], 0.02)
    assert change["overall"]["acceptance_rate"]["ci"][1] < 0
    assert set(change["kinds"]) == {"lookup", "prose", "tool"}


def test_gains_and_their_interaction_are_the_truth(report: dict[str, Any]) -> None:
    for measure in ("tpot_p50", "e2e_p50", "e2e_p95", "ttft_p50"):
        entry = report["interaction"]["c8"][measure]
        for name, truth in (("quantization", 1 / 0.8), ("speculation", 1 / 0.6), ("both", 1 / 0.54)):
            assert entry[name]["gain"] == pytest.approx(truth, rel=0.1)
            assert inside(truth, entry[name]["ci"], 0.03)
        assert entry["product"] == pytest.approx(entry["quantization"]["gain"] * entry["speculation"]["gain"])
        assert entry["ratio"]["value"] == pytest.approx(entry["both"]["gain"] / entry["product"])
        assert inside(0.48 / 0.54, entry["ratio"]["ci"], 0.02)
        assert entry["over_plain"]["both"]["against"] == "quantized"
        assert inside(1.0, report["control"]["c8"][measure]["ci"], 0.01)
    assert report["interaction"]["c8"]["e2e_p99"]["both"]["ci"] is None
    assert any("gain in e2e_p99" in one["measure"] for one in report["missing"])


def test_latency_throughput_and_goodput(report: dict[str, Any]) -> None:
    entry = report["arms"]["both"]["loads"]["c8"]
    for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        figures = entry["latency"][name]
        for percentile in ("p50", "p90", "p95"):
            assert inside(figures[percentile], figures["ci"][percentile])
    assert entry["latency"]["e2e_ms"]["ci"]["p99"] is None
    assert entry["output_tokens_per_s"] == pytest.approx(entry["output_tokens"] / entry["seconds"])
    assert inside(entry["output_tokens_per_s"], entry["ci"]["output_tokens_per_s"])
    assert entry["goodput"]["share"] == 1
    assert entry["goodput"]["ci"]["share"][0] == pytest.approx(0.025 ** (1 / 120))


def test_cost(report: dict[str, Any]) -> None:
    entry = report["arms"]["both"]["loads"]["c8"]
    # 3.6 an hour is a thousandth a second.
    assert entry["cost"]["per_accepted_answer"] == pytest.approx(entry["seconds"] / 1000 / 120)
    assert entry["cost"]["unit"] == "EUR"
    assert inside(entry["cost"]["per_accepted_answer"], entry["cost"]["ci"])
    assert entry["accepted"] | {"ci": None} == {"n": 120, "of": 120, "within_slo": 120, "share": 1.0, "ci": None}
    open_loop = report["arms"]["both"]["loads"]["r4"]["cost"]
    least = 0.025 ** (1 / 120)
    assert open_loop["ci"][1] > open_loop["per_accepted_answer"] / least, "120 of 120 do not show that all are accepted"


def test_steps(report: dict[str, Any]) -> None:
    plain, both = (report["arms"][name]["loads"]["c8"]["steps"] for name in ("quantized", "both"))
    assert (plain["target_forward_passes"], plain["forward_passes_saved"]) == (plain["output_tokens"], 0)
    drafts = report["arms"]["both"]["loads"]["c8"]["speculation"]["drafts"]
    assert both["target_forward_passes"] == drafts + 120
    assert both["forward_passes_saved"] == both["output_tokens"] - drafts - 120
    assert both["exact"] is True
    assert both["verify_step_ms"]["missing"]
    low, high = both["verify_step_ms_bounds"]
    assert (low, high) == (both["plain_step_ms"], both["step_ms"]["value"])
    assert both["draft_ms_per_token_at_most"] == pytest.approx((high - low) / K)


def test_agreement_and_sampling(report: dict[str, Any]) -> None:
    assert report["agreement"]["baseline"] == []
    assert [entry["with"] for entry in report["agreement"]["both"]] == ["baseline", "quantized"]
    assert report["agreement"]["both"][-1]["identical"] == 240
    assert report["agreement"]["baseline_again"][0]["share"] == 1
    assert set(report["sampling"]) == {"speculative/baseline", "both/quantized", "baseline_again/baseline"}
    assert all(entry["p_value"] > 0.001 for entry in report["sampling"].values())


def test_a_difference_beyond_the_noise_is_seen(tmp_path: Path) -> None:
    arms = FOUR | {
        "both": Truth("quantized", accept=0.5, differs=0.3),
        "baseline_again": Truth("baseline", differs=0.05),
    }
    report = run(write_stage(tmp_path, Settings(arms=arms)), SPEC)
    entry = report["agreement"]["both"][-1]
    assert entry["excess"]["ci"][0] > 0.1
    assert len(entry["different"]) == 10
    assert 0.02 < 1 - report["agreement"]["baseline_again"][0]["share"] < 0.1


def test_failures_count_and_cost(tmp_path: Path) -> None:
    arms = {"baseline": Truth("baseline", fails=0.2, good=0.5)}
    report = run(write_stage(tmp_path, Settings(arms=arms)), SPEC)
    entry = report["arms"]["baseline"]["loads"]["c8"]
    failed = entry["failures"]["count"]
    assert failed > 10
    assert len(entry["failures"]["examples"]) == 3
    assert entry["latency"]["e2e_ms"]["n"] == 120 - failed
    assert entry["accepted"]["of"] == 120, "a request that failed was not accepted"
    assert entry["goodput"]["share"] == (120 - failed) / 120
    assert entry["cost"]["seconds_charged"] == pytest.approx(entry["seconds"])
    assert report["acceptance_change"] is None
    assert report["interaction"]["c8"]["e2e_p50"]["ratio"] == {"value": None, "ci": None}
    gone = {(one["arm"], one["reason"]) for one in report["missing"]}
    assert ("both", "this arm was not measured") in gone


def test_what_a_server_does_not_say_is_missing(tmp_path: Path) -> None:
    spec = SpeculateSpec()
    report = run(write_stage(tmp_path / "a", Settings(reports=False, scorer=False)), spec)
    entry = report["arms"]["both"]["loads"]["c8"]
    assert entry["speculation"]["source"] == "metrics"
    assert entry["speculation"]["ci"]["acceptance_rate"] is None
    assert entry["speculation"]["cross_check"]["agree"] is None
    assert "missing" in entry["kinds"]["tool"]["speculation"]
    assert "no request of this traffic has a scorer" in entry["cost"]["missing"]
    assert entry["goodput"] is None
    assert entry["steps"]["step_ms"] is None
    measures = {one["measure"] for one in report["missing"]}
    assert {"acceptance by kind", "interval of acceptance", "cost per accepted answer", "step_ms"} <= measures
    assert report["sampling"] is None
    nothing = run(write_stage(tmp_path / "b", Settings(reports=False, counters=False)), spec)
    assert "missing" in nothing["arms"]["both"]["loads"]["c8"]["speculation"]
    assert "missing" in nothing["arms"]["both"]["loads"]["c8"]["steps"]


def test_counters_around_single_kind_blocks(tmp_path: Path) -> None:
    reports = run(write_stage(tmp_path / "a", Settings(single_kind=True)), SPEC)
    counters = run(write_stage(tmp_path / "b", Settings(single_kind=True, reports=False)), SPEC)
    for kind in ("lookup", "prose", "tool"):
        one, other = (r["arms"]["both"]["loads"]["c8"]["kinds"][kind]["speculation"] for r in (reports, counters))
        assert one["cross_check"]["agree"] is True
        assert (one["source"], other["source"]) == ("answers", "metrics")
        assert one["acceptance_rate"] == other["acceptance_rate"]
    change = counters["acceptance_change"]["c8"]["kinds"]["tool"]
    assert change["acceptance_rate"] == {
        "value": reports["acceptance_change"]["c8"]["kinds"]["tool"]["acceptance_rate"]["value"], "ci": None
    }  # fmt: skip


def test_rounds_of_a_block_are_no_further_blocks(tmp_path: Path) -> None:
    """Ten rounds of three blocks send the same requests ten times: three units, and no interval."""
    report = run(write_stage(tmp_path, Settings(reports=False, single_kind=True, rounds=10, requests=30)), SPEC)
    found = report["arms"]["both"]["loads"]["c8"]["speculation"]
    assert found["source"] == "metrics"
    assert found["ci"]["acceptance_rate"] is None
    assert report["acceptance_change"]["c8"]["overall"]["acceptance_rate"]["ci"] is None


def test_an_open_loop_shows_no_arm_to_be_cheaper(tmp_path: Path) -> None:
    """The arrivals set the time, and where all arms accept the same answers every resample gives the same ratio."""
    report = run(write_stage(tmp_path, Settings(loads=("r4",))), SPEC)
    for name in ("cost_per_accepted_answer", "output_tokens_per_s", "goodput"):
        entry = report["interaction"]["r4"].get(name)
        if entry is not None:
            assert entry["both"]["ci"] is None
            assert report["control"]["r4"][name]["ci"] is None
    assert "cost_per_accepted_answer" in report["interaction"]["r4"]
    limits = report["arms"]["both"]["loads"]["r4"]["goodput"]
    assert limits is None or limits["ci"]["requests_per_s"] is None or limits["share"] < 1


def test_many_blocks_make_an_interval_without_reports(tmp_path: Path) -> None:
    report = run(write_stage(tmp_path, Settings(reports=False, block=10)), SPEC)
    entry = report["arms"]["both"]["loads"]["c8"]["speculation"]
    assert inside(entry["acceptance_rate"], entry["ci"]["acceptance_rate"])
    assert report["acceptance_change"]["c8"]["overall"]["acceptance_rate"]["ci"][1] < 0


def test_ngram_counts_passes_as_a_bound(tmp_path: Path) -> None:
    folder = write_stage(tmp_path, Settings())
    for path in folder.glob("arms/*/arm.json"):
        info = json.loads(path.read_text())
        if info["speculative_config"]:
            info["speculative_config"]["method"] = "ngram"
            path.write_text(json.dumps(info))
    report = run(folder, SPEC)
    entry = report["arms"]["both"]["loads"]["c8"]["steps"]
    assert entry["exact"] is False
    assert any("ngram proposes nothing at some steps" in one["reason"] for one in report["missing"])


def test_draft_lengths_give_the_cost_of_a_draft_token(tmp_path: Path) -> None:
    arms = FOUR | {f"both_k{k}": Truth("quantized", accept=0.6, k=k) for k in (2, 8)}
    report = run(write_stage(tmp_path, Settings(arms=arms)), SPEC)
    entries = [report["arms"][name]["loads"]["c8"]["steps"] for name in ("both", "both_k2", "both_k8")]
    slope = entries[0]["marginal_ms_per_draft_token"]
    assert slope["arms"] == ["both", "both_k2", "both_k8"]
    assert slope == entries[2]["marginal_ms_per_draft_token"]
    by_hand = np.polyfit([4, 2, 8], [entry["step_ms"]["value"] for entry in entries], 1)[0]
    assert slope["value"] == pytest.approx(by_hand)
    assert inside(slope["value"], slope["ci"])
    assert "marginal_ms_per_draft_token" not in report["arms"]["speculative"]["loads"]["c8"]["steps"]
    assert report["interaction"]["c8"]["e2e_p50"]["others"]["both_k2"]["gain"] > 0


def test_what_a_cancellation_probe_shows() -> None:
    running = [[0.0, 4.0], [0.1, 1.0], [0.2, 0.0], [0.3, 0.0]]
    probe = {"running_after_s": running, "kv_usage_before": 0.0, "kv_usage_after": 0.0, "e2e_p50_before": 0.2}
    assert recovery(probe | {"e2e_p50_after": 0.25}) == {"idle_after_s": 0.2, "kv_freed": True, "e2e_p50_ratio": 1.25}
    held = recovery({"running_after_s": running[:2], "kv_usage_before": 0.0, "kv_usage_after": 0.1})
    assert held == {"idle_after_s": None, "kv_freed": False, "e2e_p50_ratio": None}
    assert set(recovery({}).values()) == {None}


def test_a_probe_and_late_requests_are_reported(tmp_path: Path) -> None:
    folder = write_stage(tmp_path, Settings(loads=("r4",)))
    (folder / "arms/both/probe.json").write_text('{"kv_usage_before": 0, "kv_usage_after": 0, "missing": {"x": "y"}}')
    path = folder / "arms/both/requests.jsonl"
    rows = [json.loads(line) | {"late_s": at / 1000} for at, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(folder, SPEC)
    assert report["arms"]["both"]["probe"]["kv_freed"] is True
    assert {"measure": "probe.x", "arm": "both", "load": None, "reason": "y"} in report["missing"]
    assert report["arms"]["both"]["loads"]["r4"]["late_ms"] == pytest.approx({"p50": 59.5, "p95": 113.05, "max": 119})
    assert report["arms"]["baseline"]["loads"]["r4"]["late_ms"] is None


def test_rounds_are_one_request(tmp_path: Path) -> None:
    report = run(write_stage(tmp_path, Settings(rounds=4)), SPEC)
    entry = report["arms"]["baseline"]["loads"]["c8"]
    assert entry["requests"] == 480
    # 480 values, and still 120 requests: their pace is their own, so rounds tell little of the tail.
    assert entry["latency"]["tpot_ms"]["ci"]["p99"] is None
