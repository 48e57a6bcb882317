"""Which norm or layer AWQ and SmoothQuant scale, and which layers read it, by architecture; and where they are found.

The tables are llm-compressor 0.14's (`mappings.py` of its awq, `utils.py` of its smoothquant); a contract test compares
them with the installed library. They are repeated here so that `plan` needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping as Config
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mapping:
    """`smooth` is scaled down by what `balance`, the layers that read it, are scaled up. Patterns of module names."""

    smooth: str
    balance: tuple[str, ...]


Mappings = tuple[Mapping, ...]


def _table(*rows: tuple[str, *tuple[tuple[str, str], ...]]) -> dict[str, Mappings]:
    """Each row: architectures, then (smooth, balance layers); a pattern is written without its leading `re:.*`."""
    table: dict[str, Mappings] = {}
    for architectures, *pairs in rows:
        mappings = tuple(
            Mapping(f"re:.*{smooth}", tuple(f"re:.*{x}" for x in balance.split())) for smooth, balance in pairs
        )
        table |= dict.fromkeys(architectures.split(), mappings)
    return table


AWQ: dict[str, Mappings] = _table(
    (
        "AfmoeForCausalLM",
        (r"input_layernorm$", r"self_attn.q_proj$ self_attn.k_proj$ self_attn.v_proj$ self_attn.gate_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"pre_mlp_layernorm$", r"mlp.router$ mlp.*gate_proj$ mlp.*up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "BloomForCausalLM",
        (r"input_layernorm$", r"query_key_value$"),
        (r"post_attention_layernorm$", r"dense_h_to_4h$"),
        (r"gelu_impl$", r"dense_4h_to_h$"),
    ),
    (
        "CohereForCausalLM Cohere2ForCausalLM Cohere2VisionForConditionalGeneration",
        (r"input_layernorm$", r"self_attn.q_proj$ self_attn.k_proj$ self_attn.v_proj$ mlp.gate_proj$ mlp.up_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "Cohere2MoeForCausalLM",
        (r"input_layernorm$", r"self_attn.q_proj$ self_attn.k_proj$ self_attn.v_proj$ gate_proj$ up_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "DeepseekV2ForCausalLM Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM",
        (r"input_layernorm$", r"(q|q_a)_proj$ kv_a_proj_with_mqa$"),
        (r"q_a_layernorm$", r"q_b_proj$"),
        (r"kv_a_layernorm$", r"kv_b_proj$"),
        (r"post_attention_layernorm$", r"gate_proj$ up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "DeepseekV3ForCausalLM",
        (r"input_layernorm$", r"(q|q_a)_proj$ kv_a_proj_with_mqa$"),
        (r"q_a_layernorm$", r"q_b_proj$"),
        (r"kv_a_layernorm$", r"kv_b_proj$"),
        (r"post_attention_layernorm$", r"mlp.gate$ gate_proj$ up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "Exaone4ForCausalLM OlmoForCausalLM Olmo3ForCausalLM",
        (r"v_proj$", r"o_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "Gemma2ForCausalLM",
        (r"input_layernorm$", r"q_proj$ k_proj$ v_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"pre_feedforward_layernorm$", r"gate_proj$ up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "Gemma3ForCausalLM Gemma3ForConditionalGeneration",
        (r"v_proj$", r"o_proj$"),
        (r"pre_feedforward_layernorm$", r"gate_proj$ up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "Glm4MoeForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM",
        (r"input_layernorm$", r"q_proj$ k_proj$ v_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"post_attention_layernorm$", r"mlp.gate$ mlp.experts.*.gate_proj$ mlp.experts.*.up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        (
            "GraniteForCausalLM LlamaForCausalLM Mistral3ForConditionalGeneration MistralForCausalLM "
            "NanbeigeForCausalLM Qwen2ForCausalLM Qwen2_5OmniModel "
            "Qwen2_5OmniThinkerForConditionalGeneration Qwen3ForCausalLM SeedOssForCausalLM "
            "Ernie4_5_MoeForCausalLM"
        ),
        (r"input_layernorm$", r"q_proj$ k_proj$ v_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"post_attention_layernorm$", r"gate_proj$ up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "Llama4ForConditionalGeneration",
        (r"input_layernorm$", r"q_proj$ k_proj$ v_proj$"),
        (r"v_proj$", r"o_proj$"),
        (r"post_attention_layernorm$", r"feed_forward.router$ feed_forward.*.gate_proj$ feed_forward.*.up_proj$"),
        (r"up_proj$", r"down_proj$"),
    ),
    (
        "MuseGlimmerForConditionalGeneration",
        (
            r"language_model.layers.\d+.input_layernorm$",
            (
                r"language_model.layers.\d+.self_attn.q_proj$ language_model.layers.\d+.self_attn.k_proj$ "
                r"language_model.layers.\d+.self_attn.v_proj$ "
                r"language_model.layers.\d+.self_attn.gate_proj$"
            ),
        ),
        (r"language_model.layers.\d+.self_attn.v_proj$", r"language_model.layers.\d+.self_attn.o_proj$"),
        (
            r"language_model.layers.\d+.pre_feedforward_layernorm$",
            r"language_model.layers.\d+.mlp.gate_proj$ language_model.layers.\d+.mlp.up_proj$",
        ),
        (r"language_model.layers.\d+.mlp.up_proj$", r"language_model.layers.\d+.mlp.down_proj$"),
    ),
    (
        "Phi3ForCausalLM Phi3VForCausalLM",
        (r"input_layernorm$", r"qkv_proj$"),
        (r"qkv_proj$", r"o_proj$"),
        (r"post_attention_layernorm$", r"gate_up_proj$"),
        (r"gate_up_proj$", r"down_proj$"),
    ),
    (
        "Qwen2_5_VLForConditionalGeneration",
        (r"input_layernorm$", r"q_proj$ k_proj$ v_proj$"),
        (r"v_proj$", r"o_proj$"),
        (
            r"language_model\.layers\.\d+\.post_attention_layernorm$",
            r"language_model\.layers\.\d+\.mlp\.gate_proj$ language_model\.layers\.\d+\.mlp\.up_proj$",
        ),
        (r"language_model\.layers\.\d+\.mlp\.up_proj$", r"language_model\.layers\.\d+\.mlp\.down_proj$"),
    ),
)

SMOOTHQUANT: dict[str, Mappings] = _table(
    (
        "BloomForCausalLM ChatGLMForConditionalGeneration",
        (r"input_layernorm", r"query_key_value"),
        (r"post_attention_layernorm", r"dense_h_to_4h"),
    ),
    (
        "CohereForCausalLM Cohere2ForCausalLM Cohere2VisionForConditionalGeneration",
        (
            r"input_layernorm$",
            r"self_attn\.q_proj$ self_attn\.k_proj$ self_attn\.v_proj$ mlp\.gate_proj$ mlp\.up_proj$",
        ),
    ),
    (
        "Cohere2MoeForCausalLM",
        (r"input_layernorm$", r"self_attn\.q_proj$ self_attn\.k_proj$ self_attn\.v_proj$ gate_proj$ up_proj$"),
    ),
    (
        "DeepseekV2ForCausalLM DeepseekV3ForCausalLM Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM",
        (r"input_layernorm", r"q(_a)?_proj$ kv_a_proj_with_mqa"),
    ),
    (
        "Ernie4_5_MoeForCausalLM MixtralForCausalLM",
        (r"input_layernorm", r"q_proj k_proj v_proj"),
    ),
    (
        (
            "Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration Glm4MoeForCausalLM "
            "GraniteForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM "
            "Mistral3ForConditionalGeneration MistralForCausalLM NanbeigeForCausalLM Qwen2ForCausalLM "
            "Qwen2_5OmniModel Qwen2_5OmniThinkerForConditionalGeneration "
            "Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM SeedOssForCausalLM"
        ),
        (r"input_layernorm", r"q_proj k_proj v_proj"),
        (r"post_attention_layernorm", r"gate_proj up_proj"),
    ),
    (
        "Phi3ForCausalLM Phi3VForCausalLM",
        (r"input_layernorm", r"qkv_proj"),
        (r"post_attention_layernorm", r"gate_up_proj"),
    ),
    (
        "Qwen2MoeForCausalLM Qwen3MoeForCausalLM",
        (r"input_layernorm$", r"q_proj$ k_proj$ v_proj$"),
    ),
    (
        "WhisperForConditionalGeneration",
        (r"self_attn_layer_norm", r"k_proj v_proj q_proj"),
        (r"final_layer_norm", r"fc1"),
    ),
    (
        "AfmoeForCausalLM",
        (r"input_layernorm", r"self_attn\.q_proj self_attn\.k_proj self_attn\.v_proj self_attn\.gate_proj"),
        (r"pre_mlp_layernorm", r"mlp.*gate_proj mlp.*up_proj"),
    ),
)

DEFAULT = "LlamaForCausalLM"
"""What llm-compressor takes for an architecture that it does not know."""
DYNAMIC = frozenset(
    {
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Step3p5ForCausalLM",
    }
)
"""Those whose mappings llm-compressor makes from the loaded model."""


# Where llm-compressor is wrong, as `quantize.backends.mappings` mends it (a contract test compares them).
MENDED_SMOOTHQUANT: dict[str, Mappings] = _table(
    (
        "Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration",
        ("input_layernorm$", "q_proj$ k_proj$ v_proj$"),
        ("pre_feedforward_layernorm$", "gate_proj$ up_proj$"),
    ),
    ("GptOssForCausalLM", ("input_layernorm$", "q_proj$ k_proj$ v_proj$")),
)
MENDED_AWQ: dict[str, Mappings] = {
    "MixtralForCausalLM": AWQ["Qwen3MoeForCausalLM"],
    **_table(
        (
            "GptOssForCausalLM",
            ("input_layernorm$", "q_proj$ k_proj$ v_proj$"),
            ("v_proj$", "o_proj$"),
            ("post_attention_layernorm$", "mlp.router$ gate_proj$ up_proj$"),
        )
    ),
}


def _deepseek(dense: int, layers: int) -> Mappings:
    """DeepSeek-V3 begins with `dense` layers that have no router."""
    found = [m for m in AWQ["DeepseekV3ForCausalLM"] if "post_attention" not in m.smooth]
    for numbers, routers in ((range(dense), ()), (range(dense, layers), ("mlp.gate$",))):
        if numbers:
            at = rf"re:.*layers\.({'|'.join(map(str, numbers))})\."
            readers = tuple(at + name for name in (*routers, ".*gate_proj$", ".*up_proj$"))
            found.append(Mapping(at + "post_attention_layernorm$", readers))
    return tuple(found)


def known(method: str, architecture: str, config: Config[str, Any]) -> tuple[Mappings | None, str]:
    """The mappings that `awq` or `smoothquant` will use (None where llm-compressor makes them from the loaded model),
    and whose they are."""
    if architecture in DYNAMIC:
        return None, "made by llm-compressor from the loaded model"
    mended, table = (MENDED_AWQ, AWQ) if method == "awq" else (MENDED_SMOOTHQUANT, SMOOTHQUANT)
    ours = f"sqtool's for {architecture}, where llm-compressor's are wrong"
    if method == "awq" and architecture == "DeepseekV3ForCausalLM":
        layers, dense = int(config["num_hidden_layers"]), int(config.get("first_k_dense_replace") or 0)
        return _deepseek(dense, layers), ours
    if architecture in mended:
        return mended[architecture], ours
    if architecture in table:
        return table[architecture], f"llm-compressor's for {architecture}"
    return table[DEFAULT], f"llm-compressor's default, as it does not know {architecture}"
