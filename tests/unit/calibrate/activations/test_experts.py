from __future__ import annotations

from typing import Any

import pytest
import torch

from calibrate.activations.judge import COVERED, UNCOVERED, judge
from calibrate.activations.measure import measure
from calibrate.activations.spec import ActivationsSpec
from calibrate.activations.stage import declares_experts
from calibrate.activations.watch import selected

from .conftest import EXPERTS, MOES, moe, samples

AVOIDED = 4


def experts_of(model: Any, **limits: Any) -> dict[str, Any]:
    found = measure(model, samples(60, 1), samples(30, 2), batch_tokens=256)
    return judge(ActivationsSpec(**limits), found, expects_experts=True)["experts"]


@pytest.mark.parametrize("model_type", MOES)
def test_a_router_that_avoids_an_expert_is_caught_and_the_expert_named(model_type: str) -> None:
    fair = experts_of(moe(model_type), min_tokens_per_expert=1)
    assert (fair["verdict"], fair["score"], fair["missing"]) == (COVERED, 1.0, [])
    biased = experts_of(moe(model_type, avoid=AVOIDED), min_tokens_per_expert=1)
    assert biased["verdict"] == UNCOVERED
    layers = 1 if model_type == "deepseek_v3" else 2
    assert biased["score"] == pytest.approx(1 - 1 / (layers * EXPERTS))
    (said,) = biased["missing"]
    assert said == (
        f"model.layers.1.mlp.experts: the router selects expert {AVOIDED} for 0 calibration tokens, 1 are needed "
        "(0.00% of the layer's choices on traffic)"
    )


@pytest.mark.parametrize("model_type", MOES)
def test_each_token_is_counted_once_for_each_expert_that_it_goes_to(model_type: str) -> None:
    """Padding is not: 2 experts a token, and no more."""
    found = measure(moe(model_type), samples(9, 1), samples(5, 2), batch_tokens=256)
    for row in found["experts"]:
        assert len(row["calibration"]) == len(row["traffic"]) == EXPERTS
        assert sum(row["calibration"]) == 2 * found["calibration_tokens"]
        assert sum(row["traffic"]) == 2 * found["traffic_tokens"]
    assert len(found["kv"]) == 2


def test_counts_are_the_top_k_of_the_routers_own_logits() -> None:
    model = moe("qwen3_moe")
    group = samples(5, 1)
    expected = torch.zeros(2, EXPERTS, dtype=torch.int64)
    for sample in group:
        with torch.inference_mode():
            logits = model(torch.tensor([sample.tokens]), output_router_logits=True).router_logits
        for layer, rows in enumerate(logits):
            expected[layer] += torch.bincount(rows.topk(2, dim=-1).indices.flatten(), minlength=EXPERTS)
    found = measure(model, group, [], batch_tokens=256)
    assert [row["calibration"] for row in found["experts"]] == expected.tolist()


def test_counting_arrivals_could_not_have_failed() -> None:
    """With llm-compressor's calibration of all experts, as many tokens come to the avoided expert as to any."""
    from llmcompressor.modeling.moe.context import moe_calibration_context
    from llmcompressor.modeling.moe.linearize import linearize_moe

    model = moe("qwen3_moe", avoid=AVOIDED)
    group = samples(20, 1)
    selections = measure(model, group, [])["experts"][-1]["calibration"]
    linearize_moe(model)
    experts = model.model.layers[-1].mlp.experts
    arrivals = [0] * EXPERTS

    def count(expert: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...]) -> None:
            arrivals[expert] += len(args[0])

        return hook

    for expert in range(EXPERTS):
        experts[expert].register_forward_pre_hook(count(expert))
    with torch.inference_mode(), moe_calibration_context():
        for sample in group:
            model(torch.tensor([sample.tokens]))
    total = sum(len(sample.tokens) for sample in group)
    assert arrivals == [total] * EXPERTS
    assert selections[AVOIDED] == 0
    assert sum(selections) == 2 * total


def test_an_expert_below_the_minimum_is_thin_and_one_without_a_token_is_uncovered() -> None:
    def found(calibration: list[int], traffic: list[int]) -> dict[str, Any]:
        rows = [{"name": "mlp.experts", "calibration": calibration, "traffic": traffic}]
        spec = ActivationsSpec(min_tokens_per_expert=10)
        return judge(spec, {"layers": [], "kv": [], "experts": rows}, expects_experts=True)["experts"]

    assert found([10, 10], [5, 5])["verdict"] == "COVERED"
    thin = found([10, 9, 30], [5, 5, 30])
    assert (thin["verdict"], thin["score"]) == ("THIN", pytest.approx(2 / 3))
    assert "expert 1 for 9 calibration tokens, 10 are needed (12.50%" in thin["missing"][0]
    lost = found([0, 10, 0], [0, 5, 5])
    assert (lost["verdict"], lost["score"]) == ("UNCOVERED", pytest.approx(1 / 3))
    assert "expert 2 for 0 calibration" in lost["missing"][0], "the one that traffic needs comes first"
    assert found([10, 0], [0, 0])["verdict"] == "UNCOVERED", "nor without traffic"


def test_a_mixture_that_cannot_be_watched_is_not_covered_and_says_so(llama: Any) -> None:
    found = measure(llama, samples(2, 1), samples(2, 2))
    assert "experts" not in judge(ActivationsSpec(), found, expects_experts=False)
    unknown = judge(ActivationsSpec(), found, expects_experts=True)["experts"]
    assert unknown["verdict"] == UNCOVERED
    assert "routing cannot be watched" in unknown["missing"][0]
    assert "min_tokens_per_expert: 0" in unknown["missing"][0]
    assert "experts" not in judge(ActivationsSpec(min_tokens_per_expert=0), found, expects_experts=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_experts": 8}, True),
        ({"text_config": {"n_routed_experts": 64}}, True),
        ({"num_local_experts": 1}, False),
        ({"num_experts": None}, False),
        ({"hidden_size": 8}, False),
    ],
)
def test_whether_a_config_speaks_of_experts(config: dict[str, Any], expected: bool) -> None:
    assert declares_experts(config) is expected


def test_indices_are_found_by_their_type() -> None:
    hidden, weights = torch.zeros(3, 8), torch.zeros(3, 2)
    index = torch.zeros(3, 2, dtype=torch.int64)
    assert selected((hidden, index, weights), {}) is index
    assert selected((hidden,), {"routing_weights": weights, "router_indices": index}) is index
    assert selected((hidden, weights), {}) is None
