from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.activations.measure import measure
from calibrate.activations.watch import Range

from .conftest import samples


def values(layers: list[dict[str, Any]], key: str) -> list[Any]:
    return [layer[key] for layer in layers]


def test_the_same_set_on_both_sides_has_ratio_one_and_nothing_beyond(llama: Any) -> None:
    found = measure(llama, samples(20, 1), samples(20, 1), batch_tokens=128)
    ranges = [*found["layers"], *(row[k] for row in found["kv"] for k in ("keys", "values"))]
    assert len(found["layers"]) == 2 * 4, "q, k and v share an input, gate and up do, o and down have their own"
    assert len(found["kv"]) == 2
    assert set(values(ranges, "ratio")) == {1.0}
    assert set(values(ranges, "saturated")) == set(values(ranges, "beyond_channel")) == {0.0}
    assert all(not r["worst_channels"] for r in ranges)


def test_layers_are_named_with_those_that_share_their_input(llama: Any) -> None:
    first = measure(llama, samples(2, 1), samples(2, 2))["layers"][0]
    assert first["name"] == "model.layers.0.self_attn.q_proj"
    assert first["also"] == ["model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"]


def test_figures_are_those_of_plain_forward_passes(llama: Any) -> None:
    """Against one conversation at a time, without padding, batches or a cache of ours."""
    calibration, traffic = samples(7, 1), samples(9, 2)
    layer = llama.model.layers[1]
    seen: dict[str, list[torch.Tensor]] = {"calibration": [], "traffic": []}
    keys: dict[str, list[torch.Tensor]] = {"calibration": [], "traffic": []}
    for side, group in (("calibration", calibration), ("traffic", traffic)):
        hook = layer.mlp.down_proj.register_forward_pre_hook(lambda _m, a, s=side: seen[s].append(a[0][0].abs()))
        for sample in group:
            with torch.inference_mode():
                out = llama(torch.tensor([sample.tokens]), use_cache=True)
            keys[side].append(out.past_key_values.layers[1].keys[0].abs().amax(-1).T)
        hook.remove()
    found = measure(llama, calibration, traffic, batch_tokens=100)
    row = next(r for r in found["layers"] if r["name"] == "model.layers.1.mlp.down_proj")
    for got, (side, other) in ((row, (seen["calibration"], seen["traffic"])),
                               (found["kv"][1]["keys"], (keys["calibration"], keys["traffic"]))):  # fmt: skip
        cal, live = torch.cat(side), torch.cat(other)
        over = live > cal.amax(0)
        assert got["calibration_max"] == pytest.approx(float(cal.max()), rel=1e-4)
        assert got["traffic_max"] == pytest.approx(float(live.max()), rel=1e-4)
        assert got["saturated"] == pytest.approx(float((live.amax(1) > cal.max()).double().mean()), rel=1e-4)
        assert got["beyond_channel"] == pytest.approx(float(over.double().mean()), rel=1e-4)
        worst = max((channel["beyond"] for channel in got["worst_channels"]), default=0.0)
        assert worst == pytest.approx(float(over.double().mean(0).max()), rel=1e-4)


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_larger_traffic_has_the_larger_ratio(llama: Any, factor: float) -> None:
    """Every traffic token's row at one layer is `factor` times as long: the ratio is that, and channels are beyond."""
    layer, state = llama.model.layers[0].mlp.down_proj, {"factor": 1.0}

    # Before the watch's own hook, which then sees the scaled input.
    hook = layer.register_forward_pre_hook(lambda _m, a: (a[0] * state["factor"],))
    group = samples(6, 3)

    class Switch:
        """Turns the factor on between the passes, as the first thing that is reported of traffic."""

        def task(self, description: str, total: float | None = None) -> Any:
            from sqtool.progress import SILENT

            state["factor"] = factor if "traffic" in description else 1.0
            return SILENT.task(description, total)

        def note(self, text: str) -> None:
            return None

    try:
        found = measure(llama, group, group, progress=Switch())
    finally:
        hook.remove()
    row = next(r for r in found["layers"] if r["name"] == "model.layers.0.mlp.down_proj")
    before = next(r for r in found["layers"] if r["name"] == "model.layers.0.mlp.gate_proj")
    assert row["ratio"] == factor
    assert row["saturated"] > 0
    assert row["worst_channels"][0]["ratio"] == factor
    assert before["ratio"] == 1.0


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_order_does_not_matter(llama: Any, seed: int) -> None:
    calibration = samples(8, 1)
    traffic = [*samples(6, 2, "a"), *samples(6, 3, "b")]
    expected = measure(llama, calibration, traffic, batch_tokens=90)
    shuffle = random.Random(seed).sample
    assert measure(llama, shuffle(calibration, 8), shuffle(traffic, 12), batch_tokens=90) == expected


def test_what_is_beyond_is_told_by_kind(llama: Any) -> None:
    """Calibration knows one half of the vocabulary; traffic of the other half is what goes beyond."""
    known, new = samples(30, 1, high=120), samples(10, 2, "new", low=120)
    found = measure(llama, known, [*samples(10, 3, "known", high=120), *new])
    first = found["layers"][0]
    assert first["by_kind"]["new"]["beyond_channel"] > 3 * first["by_kind"]["known"]["beyond_channel"]
    tokens = {kind: sum(len(s.tokens) for s in new if s.kind == kind) for kind in ("new",)}
    assert found["traffic_tokens"] > tokens["new"]


def test_nan_is_named(llama: Any) -> None:
    weight = llama.model.layers[0].mlp.up_proj.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        found = measure(llama, samples(2, 1), samples(2, 2))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert found["non_finite"][0] == "model.layers.0.mlp.down_proj"


@given(
    st.lists(st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
    st.lists(st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
    st.integers(1, 7),
)
def test_running_figures_do_not_depend_on_where_the_batches_end(
    calibration: list[list[float]], traffic: list[list[float]], cut: int
) -> None:
    cal, live = torch.tensor(calibration), torch.tensor(traffic)
    kinds = torch.arange(len(live)) % 2
    found = Range(["x"])
    for part in cal.split(cut):
        found.calibrate(part)
    for part, of in zip(live.split(cut), kinds.split(cut), strict=True):
        found.compare(part, of, 2)
    over = live > cal.amax(0)
    assert found.maximum is not None
    assert found.traffic is not None
    assert found.beyond is not None
    assert torch.equal(found.maximum, cal.amax(0))
    assert torch.equal(found.traffic, live.amax(0))
    assert torch.equal(found.beyond, over.sum(0))
    assert found.saturated == int((live.amax(1) > cal.max()).sum())
    assert found.values_of is not None
    assert found.values_of.tolist() == [int(over[kinds == k].sum()) for k in (0, 1)]
