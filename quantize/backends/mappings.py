"""Which norm feeds which layers, where llm-compressor 0.14 is wrong about it. Import it only inside functions.

`quantize.backends.same_function` is how these were found, and stops a run for an architecture that is not here.
"""

from __future__ import annotations

from typing import Any

from llmcompressor.modifiers.transform.awq import AWQMapping
from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY

from sqtool.errors import UsageError

QKV = ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]
ATTENTION = (QKV, "re:.*input_layernorm$")

# Gemma has a norm after the attention as well as one before the MLP; the one is taken for the other.
GEMMA = [ATTENTION, (["re:.*gate_proj$", "re:.*up_proj$"], "re:.*pre_feedforward_layernorm$")]
# GPT-OSS is taken for a model without experts: its router would read scaled inputs with unscaled weights.
SMOOTHQUANT: dict[str, Any] = {
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": GEMMA,
    "Gemma3ForConditionalGeneration": GEMMA,
    "GptOssForCausalLM": [ATTENTION],
}


def smoothquant(model: Any) -> Any | None:
    """Pairs of (layers, the norm that feeds them); None where llm-compressor's own are right or nobody knows."""
    return SMOOTHQUANT.get(type(model).__name__)


def awq(model: Any) -> list[AWQMapping] | None:
    """llm-compressor's own mappings, mended; None where they are right or nobody knows."""
    name = type(model).__name__
    if name == "MixtralForCausalLM":
        # The same for Mixtral's router, which the mappings of Qwen's mixtures have.
        return list(AWQ_MAPPING_REGISTRY["Qwen3MoeForCausalLM"])
    if name == "GptOssForCausalLM":
        # Nothing for down_proj: 1 is added to what up_proj gives, so that cannot be scaled.
        return [
            AWQMapping("re:.*input_layernorm$", QKV),
            AWQMapping("re:.*v_proj$", ["re:.*o_proj$"]),
            AWQMapping("re:.*post_attention_layernorm$", ["re:.*mlp.router$", "re:.*gate_proj$", "re:.*up_proj$"]),
        ]
    if name == "DeepseekV3ForCausalLM":
        return _deepseek(model.config.first_k_dense_replace, model.config.num_hidden_layers)
    return None


def _deepseek(dense: int, layers: int) -> list[AWQMapping]:
    """The first layers have no experts and no router, which llm-compressor asks of all."""
    found = [m for m in AWQ_MAPPING_REGISTRY["DeepseekV3ForCausalLM"] if "post_attention" not in m.smooth_layer]
    for numbers, routers in ((range(dense), []), (range(dense, layers), ["mlp.gate$"])):
        if numbers:
            at = rf"re:.*layers\.({'|'.join(map(str, numbers))})\."
            readers = [at + name for name in (*routers, ".*gate_proj$", ".*up_proj$")]
            found.append(AWQMapping(at + "post_attention_layernorm$", readers))
    return found


def none_fits(method: str, model: Any) -> UsageError:
    """The error for an architecture that llm-compressor has no mappings for."""
    return UsageError(
        f"llm-compressor knows no {method} mappings that fit {type(model).__name__}",
        remedy=f"Give {method}.mappings: which norm feeds which layers, as patterns of module names.",
    )
