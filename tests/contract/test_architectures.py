"""Every architecture of the support table is quantized as it should be; the whole table is marked slow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.errors import InfrastructureError, UsageError
from sqtool.files import read_json
from sqtool.progress import SILENT
from tests.contract import by_hand
from tests.contract.architectures import CONFIGS, make_architecture
from tests.contract.test_methods import Recorder
from tests.contract.tiny import make_tokens

MATRIX: dict[str, list[Any]] = {
    "rtn4": ["rtn"],
    "awq4": [{"awq": {"n_grid": 4}}],
    "gptq4": ["gptq"],
    "gptq8": [{"gptq": {"scheme": "W8A16"}}],
    "smoothquant-gptq-w8a8": ["smoothquant", {"gptq": {"scheme": "W8A8"}}],
    "fp8-static": [{"fp8": {"scheme": "FP8"}}],
    "fp8-block": [{"fp8": {"scheme": "FP8_BLOCK"}}],
    "fp8-kv-heads": ["fp8", {"kv_cache": {"strategy": "attn_head"}}],
    "nvfp4": ["fp4"],
    "mxfp4": [{"fp4": {"scheme": "MXFP4"}}],
}
REFUSED = {
    ("fp8-kv-heads", "deepseek-v3"): "multi-head latent attention",
}
EXPERTS = [name for name, (_, changes) in CONFIGS.items() if "num_experts_per_tok" in changes]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_architecture(name, tmp_path_factory.mktemp(name) / "model")
        return made[name]

    return get


def run(methods: list[Any], model: Path, tokens: Path, out: Path, progress: Any = SILENT, **spec: Any) -> Any:
    # The same on every processor, and exact enough for tight comparisons.
    described = QuantizeSpec.model_validate({"methods": methods, "precision": "float32", **spec})
    return quantize(described, model=model, calibration=tokens, seed=0, out=out, progress=progress)


def fused(original: dict[str, Any], layer: str) -> Any:
    """GPT-OSS: gate and up are the even and odd columns of one tensor that holds all experts, transposed."""
    prefix, number, projection = layer.rsplit(".", 2)
    if projection == "down_proj":
        return original[f"{prefix}.down_proj"][int(number)].T
    return original[f"{prefix}.gate_up_proj"][int(number)][:, 0 if projection == "gate_proj" else 1 :: 2].T


def check(name: str, architecture: str, models: Any, tmp_path: Path) -> None:
    model, tokens, progress = models(architecture), make_tokens(tmp_path / "tokens.safetensors"), Recorder()
    if reason := REFUSED.get((name, architecture)):
        with pytest.raises(UsageError, match=reason):
            run(MATRIX[name], model, tokens, tmp_path)
        return
    summary = run(MATRIX[name], model, tokens, tmp_path, progress)
    for description, (done, total) in progress.tasks.items():
        assert total is None or done == total, f"{description}: {done} of {total}"
    original = by_hand.read(model / "model.safetensors")
    stored = by_hand.read(tmp_path / "checkpoint" / "model.safetensors")
    (group, *_) = read_json(tmp_path / "checkpoint" / "config.json")["quantization_config"]["config_groups"].values()
    layers = {key.removesuffix(".weight_scale") for key in stored if key.endswith(".weight_scale")}
    assert len(layers) == summary["layers_quantized"]
    for layer in layers:
        assert not layer.endswith(("lm_head", ".gate", ".router")), layer
        weight = original[f"{layer}.weight"] if f"{layer}.weight" in original else fused(original, layer)
        got = by_hand.weights(stored, layer, group["weights"])
        assert got.shape == weight.shape, layer
        if name.startswith(("awq", "smoothquant")):
            continue  # rescaled together with the norm before it
        error = np.linalg.norm(got - weight) / np.linalg.norm(weight)
        assert error < (0.04 if group["weights"]["num_bits"] == 8 else 0.35), f"{layer}: {error}"
    if not name.startswith(("awq", "smoothquant")):
        for key in original.keys() & stored.keys():
            if key.removesuffix(".weight") not in layers:
                np.testing.assert_array_equal(stored[key], original[key], err_msg=key)


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_gptq_writes_each_architecture(architecture: str, models: Any, tmp_path: Path) -> None:
    check("gptq4", architecture, models, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(CONFIGS))
@pytest.mark.parametrize("name", [name for name in MATRIX if name != "gptq4"])
def test_each_method_writes_each_architecture(name: str, architecture: str, models: Any, tmp_path: Path) -> None:
    check(name, architecture, models, tmp_path)


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_calibration_shows_each_conversation_alone(
    architecture: str, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows hold several; what reaches the second layer inside llm-compressor's pipeline is what one alone makes."""
    import torch

    from quantize.backends import llmcompressor
    from quantize.backends.rows import conversations

    load = llmcompressor._load
    seen: list[Any] = []
    alone: list[Any] = []
    tokens = make_tokens(tmp_path / "tokens.safetensors", rows=2, length=64)

    def loading(job: Any, dtype: Any) -> Any:
        model = load(job, dtype)
        layer = llmcompressor.decoder_layers(model)[1]
        hook = layer.register_forward_pre_hook(lambda _, inputs: alone.append(inputs[0].flatten(0, 1)))
        with torch.no_grad():
            for found in conversations(tokens):
                model(input_ids=found["input_ids"][None], use_cache=False)
        hook.remove()
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
        return model

    monkeypatch.setattr(llmcompressor, "_load", loading)
    run([{"fp8": {"scheme": "FP8"}}], models(architecture), tokens, tmp_path)
    expected, got = torch.cat(alone), torch.cat(seen)
    assert len(expected) == 2 * 64
    likeness = torch.nn.functional.cosine_similarity(expected, got[: len(expected)], dim=-1)
    assert likeness.min() > 0.999


@pytest.mark.parametrize("architecture", EXPERTS)
def test_every_expert_sees_every_token(architecture: str, models: Any, tmp_path: Path) -> None:
    scales = {}
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    for every in (True, False):
        out = tmp_path / str(every)
        out.mkdir()
        run([{"fp8": {"scheme": "FP8"}}], models(architecture), tokens, out, calibrate_all_experts=every)
        stored = by_hand.read(out / "checkpoint" / "model.safetensors")
        gates = re.compile(r"model\.layers\.1\..*\.experts\.\d+\.(gate_proj|w1)\.input_scale")
        found = [float(value[0]) for key, value in stored.items() if gates.fullmatch(key)]
        assert len(found) == 4
        scales[every] = set(found)
    # The experts of a layer have the same input, so with all of its tokens also the same range.
    assert len(scales[True]) == 1
    assert len(scales[False]) > 1


def test_an_expert_without_a_token_is_an_error(models: Any, tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens.safetensors", rows=1, length=2)
    for methods in (["gptq"], [{"fp8": {"scheme": "FP8"}}]):
        with pytest.raises(UsageError, match=r"no calibration token reached .*\.experts\.") as caught:
            run(methods, models("qwen3-moe"), tokens, tmp_path, calibrate_all_experts=False)
        assert "calibrate_all_experts: true" in caught.value.remedy


def test_quantizing_experts_leaves_transformers_as_it_was(models: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    def logits() -> Any:
        model = AutoModelForCausalLM.from_pretrained(models("mixtral")).eval()
        with torch.no_grad():
            return model(torch.arange(3, 40)[None]).logits

    before = logits()
    run(["fp8"], models("mixtral"), make_tokens(tmp_path / "tokens.safetensors"), tmp_path)
    assert torch.equal(before, logits())


def test_a_pipeline_that_computes_something_else_is_noticed(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our tracer llm-compressor 0.14 runs Mistral without a causal mask. Should a new version pass this by
    itself, `quantize.backends.tracing` can lose its tracer."""
    from quantize.backends import tracing

    monkeypatch.setattr(tracing, "_Tracer", tracing.helpers.SequentialTracer)
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    with pytest.raises(InfrastructureError, match="does not compute what MistralForCausalLM computes"):
        run(["gptq"], models("mistral"), tokens, tmp_path)
    (tmp_path / "llama").mkdir()
    run(["gptq"], models("llama3"), tokens, tmp_path / "llama")


def test_a_head_of_its_own_can_be_quantized(models: Any, tmp_path: Path) -> None:
    model, tokens = models("llama3"), make_tokens(tmp_path / "tokens.safetensors")
    summary = run([{"gptq": {"ignore": []}}], model, tokens, tmp_path)
    assert summary["layers_left"] == []
    stored = by_hand.read(tmp_path / "checkpoint" / "model.safetensors")
    original = by_hand.read(model / "model.safetensors")
    (group,) = read_json(tmp_path / "checkpoint" / "config.json")["quantization_config"]["config_groups"].values()
    got = by_hand.weights(stored, "lm_head", group["weights"])
    assert np.linalg.norm(got - original["lm_head.weight"]) < 0.35 * np.linalg.norm(original["lm_head.weight"])
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_a_tied_head_is_an_error(models: Any, tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    with pytest.raises(UsageError, match="shares its weight with the input embedding"):
        run([{"gptq": {"ignore": []}}], models("qwen3"), tokens, tmp_path)


@pytest.mark.parametrize("architecture", EXPERTS)
@pytest.mark.parametrize("name", ["awq4", "smoothquant-gptq-w8a8"])
def test_a_router_may_round_in_16_bits(name: str, architecture: str, models: Any, tmp_path: Path) -> None:
    """Rescaling sends a token in a hundred to another expert there: no reason to refuse the mappings."""
    if (name, architecture) in REFUSED:
        pytest.skip("refused for another reason")
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    summary = run(MATRIX[name], models(architecture), tokens, tmp_path, precision="bfloat16")
    assert summary["details"]["computed_in"] == "bfloat16"


@pytest.mark.parametrize("architecture", list(CONFIGS))
@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_rescaling_leaves_the_function_as_it_was(
    method: str, architecture: str, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole model after the method, before rounding, against the model as it came."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantize.backends import llmcompressor

    outputs: list[Any] = []
    ids = torch.arange(3, 67)[None]

    def saving(model: Any, *_: Any, **__: Any) -> None:
        from compressed_tensors.quantization import disable_quantization

        model.apply(disable_quantization)
        with torch.no_grad():
            outputs.append(model(ids, use_cache=False).logits)
        raise InfrastructureError("enough seen")

    monkeypatch.setattr(llmcompressor, "_save", saving)
    methods = [{"awq": {"n_grid": 4}}] if method == "awq" else ["smoothquant", {"rtn": {"scheme": "W8A8"}}]
    with pytest.raises(InfrastructureError, match="enough seen"):
        run(methods, models(architecture), make_tokens(tmp_path / "tokens.safetensors"), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(models(architecture), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(outputs[0], model(ids, use_cache=False).logits, rtol=1e-3, atol=1e-3)


def test_mappings_that_break_a_model_are_noticed(models: Any, tmp_path: Path) -> None:
    """What llm-compressor 0.14 does to Gemma by itself."""
    mappings = [[["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"]]
    methods = [{"smoothquant": {"mappings": mappings}}, {"rtn": {"scheme": "W8A8"}}]
    with pytest.raises(UsageError, match=r"smoothquant changes what model\.layers\.0") as caught:
        run(methods, models("gemma3"), make_tokens(tmp_path / "tokens.safetensors"), tmp_path)
    assert "smoothquant.mappings" in caught.value.remedy
