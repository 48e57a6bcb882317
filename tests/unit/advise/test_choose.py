"""What is recommended, and above all what never is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqtool.advise import Advice, advise
from sqtool.errors import UsageError
from tests.unit.advise.reports import Interval, approval, at_load, gate, report

ARMS = ("quantized", "speculative", "both")


def arm(told: Advice, name: str) -> Any:
    return next(entry for entry in told.arms if entry.arm == name)


def rule(told: Advice, name: str) -> Any:
    return next(entry for entry in told.rules if entry.name == name)


def test_the_fastest_approved_arm_is_recommended() -> None:
    told = advise(report(), verdict=gate(), speculation=approval())
    assert told.headline == "Serve the quantized checkpoint with speculation (num_speculative_tokens 4)."
    (only,) = told.loads
    assert (only.deploy, only.because, only.num_speculative_tokens) == ("both", "speed", 4)
    assert only.why == "median request 1.70 times [1.60, 1.80], the A/A arm up to 1.02"
    assert arm(told, "both").says == "deploy"
    assert arm(told, "baseline").reason == "c16: both is shown to be faster"
    assert arm(told, "quantized").reason == "c16: faster, 1.20 times [1.15, 1.25], but both is shown to be faster still"


def test_speculation_that_is_not_approved_is_not_recommended() -> None:
    told = advise(report(), verdict=gate(), speculation=approval(approved=False))
    assert told.loads[0].deploy == "quantized"
    assert arm(told, "both").says == arm(told, "speculative").says == "no"
    assert arm(told, "both").reason.startswith("speculation is not approved: REGRESSED against quantized")
    assert told.first[0] == (
        "Be conservative: the answers of speculative and both did not hold. Change one thing at a time, and judge "
        "it on more items."
    )


def test_speculation_that_nobody_judged_is_not_recommended() -> None:
    told = advise(report(), verdict=gate())
    assert told.loads[0].deploy == "quantized"
    assert arm(told, "both").reason == "speculation was not judged"


def test_a_refused_candidate_is_not_recommended() -> None:
    told = advise(report(), verdict=gate("REGRESSED"), speculation=approval())
    assert told.loads[0].deploy == "speculative"
    assert arm(told, "quantized").reason == "the gate did not accept the candidate (REGRESSED)"
    assert advise(report(), speculation=approval()).loads[0].deploy == "speculative", "no verdict is no permission"


def test_within_the_noise_fewer_parts_win() -> None:
    gains = {"c16": {"quantized": (1.04, 1.01, 1.07), "speculative": (1.05, 1.02, 1.08), "both": (1.06, 1.03, 1.09)}}
    told = advise(report(gains, control={"c16": (1.05, 0.97, 1.12)}), verdict=gate(), speculation=approval())
    assert (told.loads[0].deploy, told.loads[0].because, told.loads[0].gain) == ("baseline", "fewest_parts", None)
    assert "no arm is shown to be faster" in told.loads[0].why
    assert rule(told, "within_noise").applies is True
    assert "not distinguishable from noise" in arm(told, "both").reason


def test_an_arm_must_beat_what_has_fewer_parts() -> None:
    gains = {"c1": {"quantized": (1.5, 1.4, 1.6), "speculative": (1.2, 1.1, 1.3), "both": (1.55, 1.45, 1.65)}}
    told = advise(report(gains), verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "quantized", "1.45 is below what the simpler arm gives already"
    assert arm(told, "both").reason.endswith("not shown to beat quantized, which has fewer moving parts")


def test_an_arm_that_is_not_paired_must_beat_the_whole_interval() -> None:
    gains = {"c1": {"quantized": (1.5, 1.4, 1.6), "speculative": (1.2, 1.1, 1.3), "both": (1.7, 1.55, 1.85)}}
    told = advise(report(gains), verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "quantized", "above its figure, and within what it may be"
    assert arm(told, "both").reason.endswith("not shown to beat quantized, which has fewer moving parts")
    gains["c1"]["both"] = (1.8, 1.65, 1.95)
    assert advise(report(gains), verdict=gate(), speculation=approval()).loads[0].deploy == "both"


def test_an_arm_that_was_not_judged_is_not_faster_within_the_interval() -> None:
    def cautions(gain: float) -> str:
        other = at_load(gain, speculates=True, first_share=0.2, rates=[0.9, 0.8])
        swept = report(extra={"both_k2": {**report()["arms"]["both"], "loads": {"c16": other}}})
        return " ".join(advise(swept, verdict=gate(), speculation=approval()).cautions)

    assert "`both_k2` is faster still" not in cautions(1.82), "[1.75, 1.89], and both is 1.70 [1.60, 1.80]"
    assert "`both_k2` is faster still at c16, and its answers were not judged" in cautions(1.9)


def test_the_ranking_may_change_with_the_load() -> None:
    gains = {
        "c64": {"quantized": (1.3, 1.2, 1.4), "speculative": (0.8, 0.7, 0.9), "both": (0.9, 0.85, 0.95)},
        "c1": {"quantized": (1.1, 1.05, 1.15), "speculative": (2.0, 1.8, 2.2), "both": (2.4, 2.3, 2.5)},
    }
    told = advise(report(gains), verdict=gate(), speculation=approval())
    assert [(advice.load, advice.deploy) for advice in told.loads] == [("c1", "both"), ("c64", "quantized")]
    assert told.headline.startswith("It depends on the load: ")
    assert any(line.startswith("The ranking changes with the load") for line in told.cautions)
    assert arm(told, "speculative").reason == (
        "c1: faster, 2.00 times [1.80, 2.20], but both is shown to be faster still; "
        "c64: slower, 0.80 times [0.70, 0.90]"
    )


def test_memory_bound_means_quantize_even_without_a_gain_in_speed() -> None:
    gains = {"c16": dict.fromkeys(ARMS, (1.0, 0.97, 1.03))}
    told = advise(report(gains, weights=(16e9, 5e9), cache=4e9), verdict=gate(), speculation=approval())
    assert (told.loads[0].deploy, told.loads[0].because, told.loads[0].gain) == ("quantized", "memory", None)
    assert rule(told, "memory_bound").says == (
        "Quantize first: weights take 80% of weights + KV cache. That frees 11 GB for KV cache."
    )
    assert told.headline == "Serve the quantized checkpoint, for its memory."
    refused = advise(report(gains, weights=(16e9, 5e9), cache=4e9), verdict=gate("REGRESSED"))
    assert refused.loads[0].deploy == "baseline"


def test_prefill_bound_and_decode_bound() -> None:
    heavy = advise(report(first_share=0.7), verdict=gate(), speculation=approval())
    assert rule(heavy, "prefill_bound").applies
    assert not rule(heavy, "decode_bound").applies
    assert any(line.startswith("Prefix caching and chunked prefill first: 70%") for line in heavy.first)
    assert "c16 is the lightest load measured" in rule(heavy, "prefill_bound").says
    light = advise(report(first_share=0.1), verdict=gate(), speculation=approval())
    assert rule(light, "decode_bound").applies
    assert any(line.startswith("Speculate: 90% of a request") for line in light.first)
    unsafe = advise(report(first_share=0.1), verdict=gate(), speculation=approval(approved=False))
    assert not any(line.startswith("Speculate") for line in unsafe.first)


def test_little_room_is_fragile() -> None:
    told = advise(report(), verdict=gate(lower=-0.018), speculation=approval())
    assert rule(told, "fragile_quality").says.startswith(
        "Be conservative: recall.exact_match has only 10% of its margin"
    )


def test_a_draft_that_is_too_long() -> None:
    told = advise(report(rates=[0.8, 0.4, 0.15, 0.05]), verdict=gate(), speculation=approval())
    assert "measure `sweep: {num_speculative_tokens: [2, 4]}`" in rule(told, "draft_length").says
    told = advise(report(rates=[0.02, 0.0]), verdict=gate(), speculation=approval())
    assert "this draft does not fit" in rule(told, "draft_length").says


def test_a_shorter_draft_of_a_sweep_wins_a_tie_once_it_is_approved() -> None:
    base = report()
    shorter = {
        **base["arms"]["both"],
        "loads": {"c16": at_load(1.8, speculates=True, first_share=0.2, rates=[0.9, 0.8])},
    }
    swept = report(extra={"both_k2": shorter})
    judged = {"speculative": True, "both": True, "both_k2": True}
    told = advise(swept, verdict=gate(), speculation=approval(arms=judged))
    assert (told.loads[0].deploy, told.loads[0].num_speculative_tokens) == ("both_k2", 2)
    told = advise(swept, verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "both"
    assert arm(told, "both_k2").reason == "its answers to the tasks were not judged"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"failures": {"count": 13, "examples": []}}, "10.2% of its requests failed"),
        ({"cost": {"per_accepted_answer": 0.3, "ci": [0.28, 0.32], "unit": "USD", "accepted": 90}}, "costs more"),
    ],
)
def test_harm_beside_the_median(change: dict[str, Any], said: str) -> None:
    value = report()
    value["arms"]["both"]["loads"]["c16"] |= change
    told = advise(value, verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "speculative"
    assert said in arm(told, "both").reason


def test_an_arm_without_any_accepted_answer_is_not_cheap() -> None:
    """Its cost has no figure, because it is infinite."""
    value = report()
    at = value["arms"]["both"]["loads"]["c16"]
    at |= {"accepted": {"n": 3, "of": 128, "within_slo": 0}, "cost": {"missing": "none of 128 scored answers ..."}}
    told = advise(value, verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "speculative"
    assert arm(told, "both").reason == "c16: none of its 128 scored answers was accepted within the SLO"
    value["arms"]["baseline"]["loads"]["c16"]["cost"] = {"missing": "none of 128 scored answers ..."}
    assert advise(value, verdict=gate(), speculation=approval()).loads[0].deploy == "both", "the baseline's no better"
    value = report()
    at = value["arms"]["both"]["loads"]["c16"]
    at |= {"accepted": {"n": 0, "of": 0, "within_slo": 0}, "cost": {"missing": "no request has a scorer"}}
    assert advise(value, verdict=gate(), speculation=approval()).loads[0].deploy == "both", "nothing was scored"


def test_a_longer_tail_is_harm() -> None:
    value = report()
    value["interaction"]["c16"]["e2e_p95"]["both"] = {"gain": 0.7, "ci": [0.6, 0.8]}
    value["arms"]["both"]["loads"]["c16"]["latency"]["e2e_ms"]["ci"]["p99"] = None  # too few requests for it
    told = advise(value, verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "speculative"
    assert arm(told, "both").reason == "c16: its p95 is longer: 0.70 times [0.60, 0.80] as fast as the baseline's"
    for undecided in ([0.5, 1.2], [1.2, 1.8]):
        value["interaction"]["c16"]["e2e_p99"] = {"both": {"gain": sum(undecided) / 2, "ci": undecided}}
        told = advise(value, verdict=gate(), speculation=approval())
        assert told.loads[0].deploy == "speculative", "another percentile does not undo what p95 shows"
        assert "its p95 is longer" in arm(told, "both").reason
    value["interaction"]["c16"]["e2e_p99"] = {"both": {"gain": 0.5, "ci": [0.4, 0.6]}}
    assert "its p99 is longer" in arm(advise(value, verdict=gate(), speculation=approval()), "both").reason


def test_speculation_must_add_to_the_same_weights_by_the_paired_figure() -> None:
    gains = {"c1": {"quantized": (1.5, 1.3, 1.7), "speculative": (0.9, 0.8, 1.1), "both": (1.6, 1.4, 1.8)}}
    value = report(gains)
    assert advise(value, verdict=gate(), speculation=approval()).loads[0].deploy == "quantized"
    over = {"both": {"against": "quantized", "gain": 1.07, "ci": [1.05, 1.09]}}
    value["interaction"]["c1"]["e2e_p50"]["over_plain"] = over
    assert advise(value, verdict=gate(), speculation=approval()).loads[0].deploy == "both", (
        "the pairing tells them apart"
    )
    over["both"]["ci"] = [0.99, 1.15]
    assert advise(value, verdict=gate(), speculation=approval()).loads[0].deploy == "quantized"


def test_sampled_answers_of_another_distribution_are_a_caution() -> None:
    value = {**report(), "sampling": {"both/quantized": {"p_value": 0.001, "p_holm": 0.002, "test": "energy"}}}
    told = advise(value, verdict=gate(), speculation=approval())
    assert "Sampled answers of both/quantized do not have one distribution (p = 0.002, adjusted)." in told.cautions


def test_nothing_measured() -> None:
    passed = advise(None, verdict=gate())
    assert passed.headline.startswith("Serve the quantized checkpoint: the gate accepted it.")
    assert passed.first == ("Measure before you choose: `sqtool speculate RECIPE`.",)
    refused = advise(None, verdict=gate("REGRESSED"))
    assert refused.headline.startswith("Serve the baseline: the gate did not accept the candidate.")
    assert [entry.says for entry in refused.arms] == ["deploy", "no"]


def test_what_the_run_does_not_say_is_unknown() -> None:
    value = report()
    for entry in value["arms"].values():
        entry["memory"] = {"missing": {"weights_bytes": "not logged"}}
        for load in entry["loads"].values():
            load["latency"] = {}
            load["cost"] = {"missing": "no item has a scorer"}
    value["interaction"], value["control"] = {}, {}
    told = advise(value, verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "baseline"
    assert rule(told, "memory_bound").applies is None
    assert rule(told, "prefill_bound").applies is None
    assert rule(told, "within_noise").applies is None
    assert any("No A/A arm ran" in line for line in told.cautions)
    assert arm(told, "both").complexity.memory_bytes is None


def test_requests_that_outlive_their_clients() -> None:
    value = report()
    value["arms"]["both"]["probe"]["running_after_s"] = [[1.0, 3.0], [10.0, 2.0]]
    told = advise(value, verdict=gate(), speculation=approval())
    assert "`both`: 2 requests were still running 10 s after their clients had gone." in told.cautions
    value["arms"]["both"]["probe"] |= {"kv_freed": False, "e2e_p50_ratio": 1.5}
    told = advise(value, verdict=gate(), speculation=approval())
    assert "`both`: the KV cache of streams that were cut off was not freed." in told.cautions
    assert "`both`: after streams were cut off, the median request took 1.50 times as long." in told.cautions


def test_another_schema_is_refused() -> None:
    with pytest.raises(UsageError, match="has schema"):
        advise({"schema": "sqtool.speculate/1"})


# ----------------------------------------------------------------------------------------------- properties


@st.composite
def gain(draw: st.DrawFn) -> Interval:
    middle = draw(st.floats(0.3, 4.0))
    return middle, middle * draw(st.floats(0.5, 1.0)), middle * draw(st.floats(1.0, 1.8))


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
    loads = draw(st.lists(st.sampled_from(["c1", "c8", "c64", "r2.5", "trace"]), min_size=1, max_size=3, unique=True))
    gains = {load: {name: draw(gain()) for name in ARMS} for load in loads}
    control = draw(st.one_of(st.just({}), st.fixed_dictionaries({load: gain() for load in loads})))
    value = report(
        gains,
        control=control,
        first_share=draw(st.floats(0.01, 0.95)),
        rates=draw(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)),
        weights=draw(st.tuples(st.floats(1e8, 1e11), st.floats(1e8, 1e11))),
    )
    if draw(st.booleans()):
        value["arms"]["both_k2"] = value["arms"]["both"]
    for name in draw(st.sets(st.sampled_from(ARMS))):
        for load in loads:
            value["arms"][name]["loads"][load]["failures"]["count"] = draw(st.integers(0, 20))
    verdict = draw(
        st.one_of(
            st.none(),
            st.builds(
                lambda outcome, allow, lower: gate(outcome, inconclusive=allow, lower=lower),
                st.sampled_from(["PASS", "REGRESSED", "INCONCLUSIVE"]),
                st.sampled_from(["refuse", "allow"]),
                st.floats(-0.02, 0.0),
            ),
        )
    )
    judged = draw(
        st.one_of(
            st.none(),
            st.builds(
                lambda whole, a, b: approval(approved=whole, arms={"speculative": a, "both": b}),
                st.booleans(),
                st.booleans(),
                st.booleans(),
            ),
        )
    )
    return value, verdict, judged


def _accepted(verdict: dict[str, Any] | None) -> bool:
    if verdict is None:
        return False
    return verdict["outcome"] == "PASS" or (verdict["outcome"], verdict["inconclusive"]) == ("INCONCLUSIVE", "allow")


@settings(max_examples=120, deadline=None)
@given(cases())
def test_never(case: tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]) -> None:
    value, verdict, judged = case
    told = advise(value, verdict=verdict, speculation=judged)
    assert {load.load for load in told.loads} == set(value["loads"])
    for load in told.loads:
        chosen = value["arms"][load.deploy]
        if chosen["speculates"]:
            assert judged is not None, "speculation was recommended that nobody judged"
            assert judged["approved"], "speculation was recommended that is not approved"
            assert judged["arms"][load.deploy]["approved"]
            assert load.num_speculative_tokens is not None
        if chosen["target"] == "quantized":
            assert _accepted(verdict), "a refused candidate was recommended"
        if load.because == "speed":
            assert load.gain is not None
            assert load.gain.low > 1, "a gain whose interval includes 1 was recommended"
            noise = value["control"].get(load.load)
            assert noise is None or load.gain.low > noise["e2e_p50"]["ci"][1], "the A/A arm shows as much"
        else:
            assert load.gain is None
            assert load.deploy in ("baseline", "quantized")
        assert load.why
    assert {entry.arm for entry in told.arms} == set(value["arms"]) - {"baseline_again"}
    for entry in told.arms:
        assert entry.reason, f"{entry.arm} has no reason"
        assert (entry.says == "deploy") == any(load.deploy == entry.arm for load in told.loads)
    assert told.first
    assert not any(line.startswith("Speculate") for line in told.first) or (judged or {}).get("approved")
    json.dumps(told.to_json(), allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_order_of_arms_and_loads_does_not_matter(
    case: tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None],
) -> None:
    value, verdict, judged = case
    turned = {
        **value,
        "arms": dict(reversed(value["arms"].items())),
        "loads": list(reversed(value["loads"])),
    }
    left, right = (advise(v, verdict=verdict, speculation=judged) for v in (value, turned))
    assert left.loads == right.loads
    assert left.headline == right.headline


def test_a_machine_that_does_not_agree_with_itself() -> None:
    told = advise(report(control={"c16": (1.7, 1.35, 2.12)}), verdict=gate(), speculation=approval())
    assert told.loads[0].deploy == "baseline"
    assert any(line.startswith("The baseline differs from itself by up to 2.12 times at c16") for line in told.cautions)


def test_requests_outside_the_slo() -> None:
    value = report()
    value["arms"]["both"]["loads"]["c16"]["goodput"] = {"share": 0.62, "requests_per_s": 1.0, "ci": {}}
    told = advise(value, verdict=gate(), speculation=approval())
    assert "Of the requests to `both` only 62% at c16 meet the SLO: send each server less." in told.cautions
