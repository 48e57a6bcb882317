from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.kernels import Runtime
from quantize.layers import read_model
from quantize.methods.gptq import GptqSpec
from quantize.plan import plan
from quantize.preflight.experts import check_experts, judge_experts
from quantize.preflight.memory import Load, peak_memory
from quantize.preflight.serving import siblings
from quantize.preflight.smoothing import resolve_mappings
from quantize.preflight.trial import Trial
from quantize.spec import QuantizeSpec
from sqtool.errors import CoverageError, UsageError
from tests.contract.tiny import write_headers
from tests.unit.quantize.test_plan import llama

CPU = Runtime("cpu", "0.32.0", flags=frozenset({"avx512f", "avx512_vnni"}))
SIZES = {"hidden_size": 384, "num_attention_heads": 6, "head_dim": 64}
HOPPER = Runtime("cuda", "0.32.0", capability=90)


def spec(*methods: Any, **keys: Any) -> QuantizeSpec:
    return QuantizeSpec.model_validate({"methods": list(methods), **keys})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_headers(tmp_path / "m", llama(2, 384, 1024, 512, 128), tie_word_embeddings=True, **SIZES)


def moe(layers: int, experts: int, dense: int = 0) -> dict[str, tuple[int, ...]]:
    """A mixture of experts whose first `dense` layers have an ordinary MLP."""
    shapes = llama(layers, 256, 512, 512, 128)
    for n in range(dense, layers):
        at = f"model.layers.{n}.mlp"
        for name in ("gate_proj", "up_proj", "down_proj"):
            shape = shapes.pop(f"{at}.{name}.weight")
            shapes |= {f"{at}.experts.{e}.{name}.weight": shape for e in range(experts)}
        shapes[f"{at}.gate.weight"] = (experts, 256)
    return shapes


# ------------------------------------------------------------------------------------------------------- serving


def test_a_merged_layer_has_the_kernel_of_the_whole(small: Path) -> None:
    """q, k and v have 384, 128 and 128 output features: alone 384 is a multiple of 128, together 640 is as well."""
    got = plan(spec({"rtn": {}}), model=small, runtime=HOPPER)
    assert [(k["kernel"], k["layers"]) for k in got["kernels"]] == [("MacheteLinearKernel", 14)]
    assert got["runtime"] == "vLLM 0.32.0, GPU (compute capability 9.0)"
    assert siblings("a.k_proj", {}) == ["a.k_proj"]


def test_parts_of_a_merged_layer_are_quantized_alike(small: Path) -> None:
    apart = spec({"rtn": {"ignore": ["lm_head", "re:.*k_proj"]}})
    assert plan(apart, model=small)["layers_quantized"] == 12
    with pytest.raises(UsageError, match=r"q_proj and .*k_proj are quantized differently"):
        plan(apart, model=small, runtime=CPU)


def test_a_layer_without_a_kernel_is_an_error_and_a_simulated_one_is_not(tmp_path: Path) -> None:
    odd = write_headers(tmp_path / "odd", llama(1, 384, 1024, 512, 72))
    with pytest.raises(UsageError, match=r"cannot run \d layers on this CPU, e\.g\. .*multiples of 32") as caught:
        plan(spec("rtn"), model=odd, runtime=CPU)
    assert "engine.env" in caught.value.remedy
    assert plan(spec({"rtn": {"scheme": "W3A16", "simulate": True}}), model=odd, runtime=CPU)["kernels"] == []


def test_what_falls_back_or_is_unpacked_is_a_warning(small: Path) -> None:
    got = plan(spec({"rtn": {"scheme": "W8A16"}}), model=small, runtime=CPU)
    (warning,) = got["warnings"]
    assert "14 layers" in warning
    assert "served as the same weights in 16 bits" in warning
    newer = plan(spec("rtn"), model=small, runtime=Runtime("cpu", "0.99.0", flags=CPU.flags))
    assert any("0.99.0" in warning for warning in newer["warnings"])


def test_tensor_parallelism_must_divide(small: Path) -> None:
    with pytest.raises(UsageError, match="tensor_parallel_size 7"):
        plan(spec("rtn"), model=small, runtime=Runtime("cuda", "0.32.0", 90, tensor_parallel=7))
    with pytest.raises(UsageError, match="cuts through groups"):
        # o_proj has 384 input features: 192 on each of two GPUs, and groups of 128.
        plan(spec("rtn"), model=small, runtime=Runtime("cuda", "0.32.0", 90, tensor_parallel=2))


def test_patterns_are_counted(small: Path) -> None:
    method = plan(spec({"rtn": {"ignore": ["lm_head", "re:.*down_proj"]}}), model=small)["methods"][0]
    assert method["targets"] == {"Linear": 15}
    assert method["ignore"] == {"lm_head": 1, "re:.*down_proj": 2}


# ------------------------------------------------------------------------------------------------------ mappings


def test_awq_mappings_of_grouped_query_attention(small: Path) -> None:
    (got,) = plan(spec("awq"), model=small)["mappings"]
    assert got["source"] == "llm-compressor's for LlamaForCausalLM"
    assert [(m["layers"], m["skipped"]) for m in got["mappings"]] == [(2, 0), (0, 2), (2, 0), (2, 0)]


def test_no_mapping_at_all_is_an_error_that_says_how_to_give_one(tmp_path: Path) -> None:
    shapes = {"h.0.attn.c_attn.weight": (768, 256), "h.0.mlp.c_fc.weight": (256, 256)}
    model = write_headers(tmp_path / "gpt", shapes, architectures=["GPT2LMHeadModel"])
    with pytest.raises(UsageError, match="no awq mappings that fit GPT2LMHeadModel") as caught:
        plan(spec("awq"), model=model)
    assert "awq.mappings" in caught.value.remedy


def test_own_mappings_are_checked(small: Path) -> None:
    mapping = {"smooth_layer": "re:.*input_layernorn", "balance_layers": ["re:.*q_proj"]}
    with pytest.raises(UsageError, match=r"matches no module; did you mean 'input_layernorm'"):
        plan(spec({"awq": {"mappings": [mapping]}}), model=small)
    pair = [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]
    got = plan(spec({"smoothquant": {"mappings": [pair]}}, {"rtn": {"scheme": "W8A8"}}), model=small)
    assert [(m["source"], m["mappings"][0]["layers"]) for m in got["mappings"]] == [("the recipe's own", 2)]


def test_a_mapping_that_is_whole_in_some_layers_only_is_an_error(tmp_path: Path) -> None:
    """Some mixtures begin with dense layers, which have no router for a mapping's `mlp.gate`."""
    mixed = write_headers(tmp_path / "mixed", moe(3, 4, dense=1), architectures=["Qwen3MoeForCausalLM"])
    awq = spec({"awq": {"ignore": ["lm_head", "re:.*mlp\\.gate$"]}})
    got = plan(awq, model=mixed)
    # In the dense layer there are no experts either: the mapping is simply not there.
    assert got["mappings"][0]["mappings"][2]["layers"] == 2
    own = {"smooth_layer": "re:.*post_attention_layernorm$", "balance_layers": ["re:.*mlp\\.gate$", "re:.*up_proj$"]}
    with pytest.raises(UsageError, match=r"in model\.layers\.0 nothing matches re:\.\*mlp"):
        plan(spec({"awq": {"mappings": [own]}}), model=mixed)


def test_deepseek_has_mappings_for_both_kinds_of_its_layers(tmp_path: Path) -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 3, "first_k_dense_replace": 1}
    deepseek = write_headers(tmp_path / "ds", moe(3, 4, dense=1), **config)
    (got,) = plan(spec("awq"), model=deepseek)["mappings"]
    found = {m["smooth"]: m["layers"] for m in got["mappings"] if "post_attention" in m["smooth"]}
    assert list(found.values()) == [1, 2]
    assert got["source"].startswith("sqtool's for DeepseekV3ForCausalLM")


def test_stacked_experts_are_the_layers_that_they_become(tmp_path: Path) -> None:
    """GPT-OSS: all experts in one tensor, transposed."""
    shapes = llama(1, 256, 512, 512, 128)
    for name in ("gate_proj", "up_proj", "down_proj"):
        del shapes[f"model.layers.0.mlp.{name}.weight"]
    experts = "model.layers.0.mlp.experts"
    shapes |= {f"{experts}.gate_up_proj": (4, 256, 1024), f"{experts}.down_proj": (4, 512, 256)}
    shapes["model.layers.0.mlp.router.weight"] = (4, 256)
    model = write_headers(tmp_path / "m", shapes, architectures=["GptOssForCausalLM"], hidden_size=256)
    linears = read_model(model).linears
    assert (linears[f"{experts}.3.up_proj"].rows, linears[f"{experts}.3.up_proj"].columns) == (512, 256)
    assert (linears[f"{experts}.0.down_proj"].rows, linears[f"{experts}.0.down_proj"].columns) == (256, 512)
    got = plan(spec("rtn"), model=model)
    assert got["layers_quantized"] == 4 + 3 * 4
    assert got["bytes_after"] < 0.45 * got["bytes_before"]


def test_mixtral_is_looked_for_under_the_names_of_the_loaded_model(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in moe(2, 2).items():
        renamed = name.replace(".mlp.", ".block_sparse_moe.").replace(".gate_proj", ".w1")
        shapes[renamed.replace(".up_proj", ".w3").replace(".down_proj", ".w2")] = shape
    model = read_model(write_headers(tmp_path / "mixtral", shapes, architectures=["MixtralForCausalLM"]))
    method = spec("awq").methods[0].method
    resolved = resolve_mappings(method, model, where="methods.0.awq")
    assert resolved is not None
    assert [(found.layers, found.skipped) for found in resolved.found] == [(2, 0), (0, 2), (2, 0), (2, 0)]
    assert resolve_mappings(GptqSpec(), model, where="methods.0.gptq") is None


# -------------------------------------------------------------------------------------------------------- memory


def test_memory_grows_with_what_it_is_made_of(small: Path) -> None:
    model = read_model(small)
    load = Load(tokens=4096, batch_size=8, row_length=512, bytes_per_value=4)
    hessian = dict.fromkeys(model.linears, "hessian")
    none = peak_memory(model, {}, load, accelerator=False)
    gptq = peak_memory(model, hessian, load, accelerator=False)
    split = peak_memory(model, hessian, load, accelerator=True)
    more = peak_memory(model, hessian, Load(40960, 8, 512, 4), accelerator=True)
    assert none.host < gptq.host
    assert (none.device, gptq.device) == (0, 0)
    # A Hessian of down_proj alone, and its inverse, take this much.
    assert gptq.host - none.host > 3 * 4 * 1024**2
    assert split.device > 3 * 4 * 1024**2
    # Hidden states twice, a row of the attention mask, sine and cosine of each position.
    assert more.host - split.host == 9 * 4096 * (2 * 384 + 512 + 2 * 64) * 4
    assert more.device == split.device


def test_awqs_search_keeps_more_on_the_host(small: Path) -> None:
    model = read_model(small)
    load = Load(tokens=4096, batch_size=8, row_length=512, bytes_per_value=4)
    forward, grid = (dict.fromkeys(model.linears, kind) for kind in ("forward", "grid"))
    alone, split = (
        peak_memory(model, grid, load, accelerator=there).host
        - peak_memory(model, forward, load, accelerator=there).host
        for there in (False, True)
    )
    assert split == 0
    # Inputs of three widths of two, sorted ones of the wider, four tensors of hidden states.
    assert alone >= 4096 * (1024 + 384 + 1024 + 4 * 384) * 4


def test_too_little_memory_is_a_warning(small: Path) -> None:
    assert plan(spec("gptq"), model=small, memory=10**12)["warnings"] == []
    (warning,) = plan(spec("gptq"), model=small, memory=10**8)["warnings"]
    assert "0.1 GB" in warning


# ------------------------------------------------------------------------------------------------------- experts


def test_rare_experts_warn_or_stop() -> None:
    routed = {"model.layers.0.mlp.gate": [900, 3, 700], "model.layers.1.mlp.gate": [500, 600, 0]}
    assert judge_experts(routed, minimum=0, calibrate_all_experts=False) == ()
    (warning,) = judge_experts(routed, minimum=10, calibrate_all_experts=True)
    assert "2 of 6 experts" in warning
    assert "model.layers.0.mlp.gate expert 1 (3)" in warning
    with pytest.raises(CoverageError, match="2 of 6 experts") as caught:
        judge_experts(routed, minimum=10, calibrate_all_experts=False)
    assert "calibrate_all_experts" in caught.value.remedy


def test_experts_are_read_from_what_calibration_saw(tmp_path: Path) -> None:
    report = tmp_path / "activations.json"
    assert check_experts(report, minimum=10, calibrate_all_experts=False) == ()
    rows = [{"name": "model.layers.0.mlp.experts", "calibration": [20, 1], "traffic": [5, 5]}]
    report.write_text(json.dumps({"dimensions": {}, "experts": rows}))
    assert check_experts(report, minimum=0, calibrate_all_experts=False) == ()
    (warning,) = check_experts(report, minimum=10, calibrate_all_experts=True)
    assert "model.layers.0.mlp.experts expert 1 (1)" in warning
    with pytest.raises(CoverageError):
        check_experts(report, minimum=10, calibrate_all_experts=False)


# --------------------------------------------------------------------------------------------------------- trial


@given(
    start=st.floats(1, 100),
    layer=st.floats(0, 10),
    row=st.floats(0, 1),
    row_in_layer=st.floats(0, 1),
    layers=st.integers(1, 80),
    rows=st.integers(8, 1000),
)
def test_a_trial_recovers_the_time_of_a_run_that_is_what_it_takes_it_for(
    start: float, layer: float, row: float, row_in_layer: float, layers: int, rows: int
) -> None:
    def seconds(n: int, r: int) -> float:
        return start + n * layer + r * row + n * r * row_in_layer

    few, many = 8, 16
    got = Trial(
        seconds(1, few), seconds(1, few), seconds(2, few), seconds(1, many), seconds(2, many), few, many, layers, rows
    )
    assert got.seconds == pytest.approx(seconds(layers, rows), rel=1e-6, abs=1e-6)


# ------------------------------------------------------------------------------------------------------ backends


@pytest.mark.parametrize(
    ("backend", "methods", "said"),
    [
        ("autoawq", ["gptq"], "does awq, and nothing else"),
        ("gptqmodel", ["smoothquant", {"gptq": {"scheme": "W8A8"}}], "does gptq or awq"),
        ("autoawq", [{"awq": {"scheme": "W4A16"}}], "zero points"),
        ("autoawq", [{"awq": {"n_grid": 10}}], "no setting awq.n_grid"),
        ("autoawq", [{"awq": {"duo_scaling": "both"}}], "duo_scaling true or false"),
        ("auto-gptq", [{"gptq": {"scheme": "W4A16_ASYM"}}], "without zero points only"),
        ("auto-gptq", [{"gptq": {"targets": ["re:.*mlp.*"]}}], "no setting gptq.targets"),
        ("gptqmodel", [{"gptq": {"group_size": 256}}], "group sizes 32, 64, 128"),
        ("gptqmodell", ["gptq"], "did you mean 'gptqmodel'"),
    ],
)
def test_a_backend_says_what_it_cannot_do(backend: str, methods: list[Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        spec(*methods, backend=backend)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "methods"),
    [
        ("autoawq", [{"awq": {"duo_scaling": False, "group_size": 64}}]),
        ("auto-gptq", [{"gptq": {"actorder": None, "dampening_frac": 0.1, "scheme": "W8A16"}}]),
        ("gptqmodel", ["awq"]),
        ("gptqmodel", ["gptq"]),
    ],
)
def test_a_backend_takes_what_it_can_do(backend: str, methods: list[Any]) -> None:
    assert spec(*methods, backend=backend).backend == backend
