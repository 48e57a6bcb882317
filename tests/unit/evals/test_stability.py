"""Activations, NaN and saturation seen in a forward pass, against what is computed from the definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from evals.layerwise import decoder_layers  # noqa: E402
from evals.stability import FP8_MAX, Monitor, kv_scales, summary  # noqa: E402

LENGTHS = [12, 7]


def model(layers: int = 3) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=layers, **sizes)).eval()


def seen(network: Any, scales: dict[str, Any] | None = None, pad: int = 0) -> dict[str, dict[str, Any]]:
    tokens = torch.full((2, 12), pad)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = torch.arange(1, length + 1)
    with torch.inference_mode(), Monitor(network, scales or {}) as monitor:
        monitor.begin(LENGTHS, max(LENGTHS), "cpu")
        network(tokens, use_cache=False)
    return monitor.rows()


def alone(network: Any, where: str) -> list[Any]:
    """Inputs of a module for each text by itself, without padding."""
    kept: list[Any] = []
    hook = network.get_submodule(where).register_forward_hook(lambda _m, args, _out: kept.append(args[0]))
    with torch.inference_mode():
        for length in LENGTHS:
            network(torch.arange(1, length + 1).unsqueeze(0), use_cache=False)
    hook.remove()
    return kept


def test_largest_activation_of_real_tokens() -> None:
    network = model()
    rows = seen(network)
    # What leaves the last layer goes into the final norm.
    want = max(float(x.abs().max()) for x in alone(network, "model.norm"))
    assert rows["model.layers.2"] == {"activation_max": pytest.approx(want, rel=1e-5), "nan": 0, "inf": 0}
    assert rows == seen(network, pad=63), "what stands in the padding does not matter"
    assert all(not layer._forward_hooks for _, layer in decoder_layers(network))


def test_nan_and_infinity_are_counted_and_the_rest_is_still_measured() -> None:
    network = model()
    with torch.no_grad():
        network.model.layers[1].mlp.down_proj.weight[3].fill_(float("inf"))
        network.model.layers[1].mlp.down_proj.weight[4].fill_(float("nan"))
    rows = seen(network)
    assert (rows["model.layers.0"]["nan"], rows["model.layers.0"]["inf"]) == (0, 0)
    hit = rows["model.layers.1"]
    assert hit["nan"] + hit["inf"] == 2 * sum(LENGTHS), "one channel each, every real token"
    assert 0 < hit["activation_max"] < 1e3
    assert rows["model.layers.2"]["activation_max"] is None, "the norm spreads it over all channels"
    told = summary([{"name": name, **row} for name, row in rows.items()])
    assert told["activation_max_layer"] in ("model.layers.0", "model.layers.1")
    assert told["nan"] >= 32 * sum(LENGTHS)
    assert summary([]) == {"nan": 0, "inf": 0, "activation_max": None, "activation_max_layer": None}


def quantized(network: Any, *, dynamic: bool) -> Any:
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token" if dynamic else "tensor"}
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
        "input_activations": {**inputs, "dynamic": dynamic},
    }
    config = {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "quant_method": "compressed-tensors"}
    apply_quantization_config(network, QuantizationConfig.model_validate(config))
    for module in network.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data.fill_(1.0)
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(1.0)
            module.quantization_enabled = False  # the inputs stay those of the plain model
    return network


def test_static_fp8_saturation() -> None:
    where = "model.layers.1.mlp.down_proj"
    values = torch.cat([x.reshape(-1, x.shape[-1]) for x in alone(model(), where)])
    limit = float(values.abs().quantile(0.9))
    network = quantized(model(), dynamic=False)
    assert all(row["fp8_saturation"] == 0.0 for row in seen(network).values())
    network.get_submodule(where).input_scale.data.fill_(limit / FP8_MAX)
    row = seen(network)["model.layers.1"]
    want = float((values.abs() > limit).float().mean())
    assert (row["fp8_worst"], row["fp8_worst_saturation"]) == ("mlp.down_proj", pytest.approx(want, abs=1e-3))
    # Six modules see 32 channels and down_proj sees 64; all see the same tokens.
    assert row["fp8_saturation"] == pytest.approx(want * 64 / (6 * 32 + 64), abs=1e-3)
    assert summary([{"name": "x", **row}])["fp8_saturation"] == row["fp8_saturation"]


def test_dynamic_fp8_has_none_by_construction() -> None:
    row = seen(quantized(model(), dynamic=True))["model.layers.0"]
    assert row["fp8_saturation"] == 0.0
    assert "fp8_worst" not in row


def test_a_quantized_kv_cache_alone_is_no_fp8_layer() -> None:
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    network = model()
    cache = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    config = {"config_groups": {}, "kv_cache_scheme": cache, "quant_method": "compressed-tensors"}
    apply_quantization_config(network, QuantizationConfig.model_validate(config))
    name = "model.layers.1.self_attn"
    for layer in network.model.layers:
        layer.self_attn.k_scale.data.fill_(1.0)
        layer.self_attn.v_scale.data.fill_(1.0)
    rows = seen(network, {name: {"k": torch.tensor([1e-9]), "v": torch.tensor([1.0])}})
    assert "fp8_saturation" not in rows["model.layers.1"]
    assert rows["model.layers.1"]["k_saturation"] == 1.0, "seen before it is quantized with the scale in the model"
    assert rows["model.layers.1"]["v_saturation"] == 0.0


def test_kv_saturation_is_of_rotated_keys_and_by_the_checkpoints_scales(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import DynamicCache

    network = model()
    cache = [DynamicCache(), DynamicCache()]
    with torch.inference_mode():
        for one, length in zip(cache, LENGTHS, strict=True):
            network(torch.arange(1, length + 1).unsqueeze(0), past_key_values=one, use_cache=True)
    keys = torch.cat([one.layers[1].keys.transpose(1, 2).reshape(-1) for one in cache]).abs()
    values = torch.cat([one.layers[1].values.transpose(1, 2).reshape(-1) for one in cache]).abs()
    name = "model.layers.1.self_attn"
    scales = {"k": float(keys.quantile(0.8)) / FP8_MAX, "v": float(values.quantile(0.95)) / FP8_MAX}
    save_file(
        {f"{name}.{side}_scale": torch.tensor([scale]) for side, scale in scales.items()}, tmp_path / "m.safetensors"
    )
    found = kv_scales(tmp_path)
    assert set(found) == {name}
    rows = seen(network, found)
    for side, states in (("k", keys), ("v", values)):
        want = float((states > scales[side] * FP8_MAX).float().mean())
        assert rows["model.layers.1"][f"{side}_saturation"] == pytest.approx(want, abs=2e-3) != 0.0
    assert "k_saturation" not in rows["model.layers.0"]
    heads = seen(network, {name: {"k": torch.tensor([1e9, 1e-9]), "v": torch.tensor(1e9)}})["model.layers.1"]
    assert (heads["k_saturation"], heads["v_saturation"]) == (0.5, 0.0), "one scale a head"
    assert kv_scales(tmp_path / "nowhere") == {}
