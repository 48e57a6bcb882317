from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from quantize.backends import BACKENDS, load_backend
from quantize.layers import ROUTERS
from quantize.methods import METHODS, load_method
from quantize.schemes import SCHEMES
from quantize.spec import QuantizeSpec


def spec(*methods: Any, **others: Any) -> QuantizeSpec:
    return QuantizeSpec.model_validate({"methods": list(methods), **others})


def error(*methods: Any, **others: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        spec(*methods, **others)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_name_of_the_table_is_a_method_of_that_name(name: str) -> None:
    assert load_method(name).name == name


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_of_the_table_loads(name: str) -> None:
    assert callable(load_backend(name).run)


@pytest.mark.parametrize("written", ["gptq", {"gptq": None}, {"gptq": {}}])
def test_a_method_without_keys_has_its_defaults(written: Any) -> None:
    method = spec(written).methods[0].method
    assert method.name == "gptq"
    assert method.weights() is not None
    assert method.weights().bits == 4


def test_awq_is_scaled_and_then_rounded() -> None:
    modifiers = spec({"awq": {"n_grid": 10}}).methods[0].method.modifiers()
    assert [m.target.rsplit(":")[-1] for m in modifiers] == ["AWQModifier", "QuantizationModifier"]
    assert modifiers[0].arguments == {"duo_scaling": True, "n_grid": 10}
    assert modifiers[1].arguments == {"targets": ["Linear"], "ignore": ["lm_head", ROUTERS], "scheme": "W4A16_ASYM"}


def test_a_group_size_that_is_not_the_presets_is_written_out() -> None:
    (modifier,) = spec({"gptq": {"group_size": 64, "actorder": None}}).methods[0].method.modifiers()
    assert "scheme" not in modifier.arguments
    weights = modifier.arguments["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 64, True)
    assert modifier.arguments["actorder"] is None


def test_the_preset_group_size_stays_a_preset() -> None:
    (modifier,) = spec({"rtn": {"group_size": 128}}).methods[0].method.modifiers()
    assert modifier.arguments["scheme"] == "W4A16"


def test_a_dump_has_only_the_method_that_is_set_and_reads_back() -> None:
    written = spec("fp8")
    dumped = written.model_dump(mode="json")
    assert list(dumped["methods"][0]) == ["fp8"]
    assert QuantizeSpec.model_validate(dumped) == written


def test_the_json_schema_knows_every_methods_keys() -> None:
    text = str(QuantizeSpec.model_json_schema())
    for key in ("duo_scaling", "dampening_frac", "smoothing_strength", "simulate"):
        assert key in text


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["smoothquant"], "only prepares the model"),
        (["smoothquant", "gptq"], "nothing after it quantizes activations"),
        (["smoothquant", "awq"], "nothing after it quantizes activations"),
        ([{"gptq": {"scheme": "W8A8"}}, "smoothquant"], "must come before"),
        (["smoothquant", "smoothquant", "fp8"], "there twice"),
        (["awq", "gptq"], "both quantize Linear"),
        ([{"rtn": {"scheme": "W3A16"}}], "simulate: true"),
        ([{"rtn": {"scheme": "W8A8", "simulate": True}}], "quantizes activations too"),
        ([{"rtn": {"simulate": True}}, {"fp8": {"targets": ["re:.*q_proj"]}}], "stands alone"),
        ([{"awqq": {}}], "did you mean 'awq'"),
        ([{"awq": {"scheme": "W4A16_ASIM"}}], "did you mean 'W4A16_ASYM'"),
        ([{"awq": {"scheme": "W8A8"}}], "awq has no scheme 'W8A8'"),
        ([{"awq": {}, "gptq": {}}], "each entry of methods is one method"),
        ([{"gptq": {"dampening": 0.1}}], "Extra inputs"),
        ([{"gptq": {"scheme": "W8A8", "group_size": 128}}], "takes no group_size"),
        ([{"gptq": {"scheme": "W8A8", "symmetric": False}}], "is symmetric"),
        ([{"gptq": {"group_size": 8}}], "greater than or equal to 16"),
        ([{"gptq": {"targets": []}}], "at least 1 item"),
        ([{"gptq": {"actorder": "group"}}], "has retired actorder 'group'"),
        ([{"gptq": {"actorder": "dynamic"}}], "use static (the default) or null"),
        ([{"gptq": {"actorder": "weigth"}}], "Input should be 'static'"),
        ([{"fp8": {"targets": ["re:.*q_proj"]}}, {"awq": {"targets": ["re:.*mlp.*"]}}], "awq must come before"),
        (["kv_cache", "fp8"], "kv_cache must come last"),
        (["fp8", "kv_cache", "kv_cache"], "there twice"),
        (["smoothquant", "kv_cache"], "nothing after it quantizes activations"),
        ([{"kv_cache": {"strategy": "channel"}}], "Input should be 'tensor' or 'attn_head'"),
        ([{"kv_cache": {"dtype": "int8"}}], "Input should be 'fp8'"),
        ([{"fp8": {"scheme": "FP8_BLOCK", "group_size": 64}}], "one scale per block of 128 x 128"),
        ([{"fp8": {"scheme": "FP8", "group_size": 64}}], "one scale per layer"),
        ([{"fp8": {"scheme": "FP8_STATIC"}}], "fp8 has no scheme 'FP8_STATIC'"),
        ([{"fp4": {"scheme": "NVFP4", "group_size": 32}}], "groups of 16 by definition"),
        ([{"fp4": {"scheme": "NVFP4A16", "symmetric": False}}], "is symmetric"),
        ([{"rtn": {"scheme": "NVFP4A16", "simulate": True}}], "simulate is for integer schemes"),
        ([{"rtn": {"reduce_range": True}}], "reduce_range is for scheme W8A8"),
        ([{"fp8": {"reduce_range": True}}], "reduce_range is for scheme W8A8"),
        ([], "give methods"),
    ],
)
def test_what_cannot_be_is_said(methods: list[Any], said: str) -> None:
    assert said in error(*methods)


@pytest.mark.parametrize(
    "methods",
    [
        ["smoothquant", {"gptq": {"scheme": "W8A8"}}],
        ["smoothquant", {"rtn": {"scheme": "W8A8"}}],
        ["smoothquant", "fp8"],
        [{"gptq": {"targets": ["re:.*mlp.*"]}}, {"fp8": {"targets": ["re:.*self_attn.*"]}}],
        [{"rtn": {"scheme": "W2A16", "simulate": True}}],
        ["awq", "kv_cache"],
        ["kv_cache"],
        [{"awq": {"targets": ["re:.*mlp.*"]}}, {"fp8": {"targets": ["re:.*self_attn.*"]}}, "kv_cache"],
        [{"gptq": {"actorder": "weight"}}],
        [{"fp4": {"scheme": "MXFP4"}}],
    ],
)
def test_what_can_be_is_taken(methods: list[Any]) -> None:
    assert len(spec(*methods).methods) == len(methods)


def test_methods_or_a_checkpoint() -> None:
    assert QuantizeSpec(checkpoint="org/model").methods == []
    assert "not both" in error("awq", checkpoint="org/model")
    with pytest.raises(ValidationError, match="checkpoint is empty"):
        QuantizeSpec(checkpoint=" ")


def test_an_unknown_backend_names_the_nearest() -> None:
    assert "did you mean 'llmcompressor'" in error("awq", backend="llm-compressor")


def test_calibration_is_needed_by_what_looks_at_data() -> None:
    assert spec("awq").needs_calibration
    assert spec("smoothquant", "fp8").needs_calibration
    assert not spec("fp8").needs_calibration
    assert not spec("rtn").needs_calibration
    assert spec({"fp8": {"scheme": "FP8"}}).needs_calibration
    assert spec("fp4").needs_calibration
    assert not spec({"fp4": {"scheme": "MXFP4"}}).needs_calibration
    assert spec("kv_cache").needs_calibration
    assert spec("rtn", layer_report="outputs").needs_calibration


def test_the_size_of_a_shard_is_a_number_of_bytes() -> None:
    assert spec("rtn", max_shard_size="800MB").max_shard_size == "800MB"
    for wrong in ("5", "0GB", "5 GB", "5gib"):
        assert "max_shard_size" in error("rtn", max_shard_size=wrong)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("FP8", 8.0), ("FP8_DYNAMIC", 8 + 16 / 1024), ("NVFP4", 4.5), ("MXFP4", 4.25), ("W4A16_ASYM", 4 + 20 / 128)],
)
def test_bits_that_a_weight_takes(scheme: str, bits: float) -> None:
    assert SCHEMES[scheme].stored_bits(1024) == bits
