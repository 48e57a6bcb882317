from __future__ import annotations

from typing import Any

import pytest

from calibrate.activations.judge import judge, kind_scores, kinds_to_add
from calibrate.activations.spec import ActivationsSpec


def layer(name: str, calibration: float = 1.0, traffic: float = 1.0, **shares: Any) -> dict[str, Any]:
    by_kind = shares.pop("by_kind", {})
    return {
        "name": name,
        "also": [],
        "calibration_max": calibration,
        "traffic_max": traffic,
        "ratio": traffic / calibration if calibration else None,
        "saturated": shares.get("saturated", 0.0),
        "beyond_channel": shares.get("beyond_channel", 0.0),
        "worst_channels": [{"channel": 7}],
        "by_kind": {kind: {"saturated": s, "beyond_channel": s} for kind, s in by_kind.items()},
    }


def judged(*layers: dict[str, Any], kv: list[dict[str, Any]] | None = None, **limits: Any) -> dict[str, Any]:
    found = {"layers": list(layers), "kv": kv or [], "experts": []}
    return judge(ActivationsSpec(**limits), found, expects_experts=False)


def test_the_worst_layer_decides_and_is_named() -> None:
    out = judged(layer("a"), layer("b", 2.0, 3.2), layer("c", 2.0, 3.1), max_range_ratio=1.5)["activation_range"]
    assert (out["score"], out["threshold"], out["verdict"]) == (2 / 3.2, 1 / 1.5, "THIN")
    assert out["missing"] == [
        "b: traffic reaches 3.2, calibration 2 (1.6 times)",
        "c: traffic reaches 3.1, calibration 2 (1.55 times)",
    ]


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, "COVERED"), (0.005, "COVERED"), (0.008, "THIN"), (0.0101, "UNCOVERED")]
)
@pytest.mark.parametrize("key", ["saturated", "beyond_channel"])
def test_twice_the_limit_is_uncovered(key: str, share: float, verdict: str) -> None:
    dimension = {"saturated": "activation_saturation", "beyond_channel": "activation_channels"}[key]
    out = judged(layer("a", **{key: share}), max_saturated=0.005, max_beyond_channel=0.005)[dimension]
    assert out["verdict"] == verdict
    assert out["score"] == 1 - share
    assert bool(out["missing"]) == (verdict != "COVERED")


def test_traffic_below_the_calibrated_maximum_scores_one_and_not_more() -> None:
    assert judged(layer("a", 4.0, 1.0))["activation_range"]["score"] == 1.0
    assert judged(layer("a", 4.0, 0.0))["activation_range"]["score"] == 1.0


def test_a_layer_that_calibration_never_reached_scores_zero() -> None:
    out = judged(layer("a", 0.0, 1.0))["activation_range"]
    assert (out["score"], out["verdict"]) == (0.0, "UNCOVERED")
    assert "times" not in out["missing"][0]


def test_kinds_and_channels_are_named() -> None:
    shares = {"x": 0.02, "y": 0.3, "z": 0.0}
    out = judged(layer("a", saturated=0.1, beyond_channel=0.1, by_kind=shares))
    assert out["activation_saturation"]["missing"] == [
        "a: 10.00% of traffic tokens go beyond the calibrated maximum, mostly in y (30.00%), x (2.00%)"
    ]
    assert out["activation_channels"]["missing"][0].endswith("x (2.00%); worst channels 7")


def test_many_are_counted() -> None:
    out = judged(*(layer(str(i), 1.0, 9.0) for i in range(10)))["activation_range"]
    assert out["missing"][-1] == "and 6 more places"
    assert len(out["missing"]) == 5


def test_keys_and_values_are_judged_layer_by_layer() -> None:
    kv = [{"layer": 3, "keys": layer("k"), "values": layer("v", 1.0, 4.0)}]
    out = judged(layer("a"), kv=kv)["kv_range"]
    assert (out["score"], out["verdict"]) == (0.25, "UNCOVERED")
    assert out["missing"][0].startswith("layer 3 values: traffic reaches 4")


def test_without_traffic_only_experts_can_be_judged() -> None:
    bare = {"name": "a", "also": [], "calibration_max": 1.0}
    found = {"layers": [bare], "kv": [{"layer": 0, "keys": bare, "values": bare}], "experts": []}
    assert judge(ActivationsSpec(), found, expects_experts=False) == {}


def test_kinds_are_ranked_by_how_far_they_reach() -> None:
    found = {"layers": [layer("a", by_kind={"x": 0.1, "y": 0.2, "z": 0.0}), layer("b", by_kind={"x": 0.3})]}
    assert kinds_to_add(found) == ["x", "y"]
    assert kind_scores(found) == {"x": pytest.approx(0.8), "y": pytest.approx(0.8), "z": 1.0}
