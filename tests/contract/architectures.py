"""Tiny random models of the architectures that the support table is about; each takes a second to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.contract.tiny import make_model, make_tokenizer

HIDDEN, HEAD, LAYERS = 128, 64, 2
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN}
# Class prefix in transformers, and what differs from COMMON.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", {}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "decoder_sparse_step": 1}),
    "mistral": ("Mistral", {"sliding_window": 32}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "gemma3": ("Gemma3", {"tie_word_embeddings": True, "sliding_window": 32, "query_pre_attn_scalar": HEAD}),
    "phi3": ("Phi3", {}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **EXPERTS,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "topk_method": "noaux_tc",  # as in the released model's config; vLLM reads it
            "num_key_value_heads": 2,
            "q_lora_rank": HIDDEN,
            "kv_lora_rank": HIDDEN,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": HEAD,
            "head_dim": 32,
        },
    ),
}


def make_architecture(name: str, folder: Path, *, seed: int = 0) -> Path:
    """A bf16 model of that architecture with its tokenizer; `folder` again."""
    import torch
    import transformers

    prefix, changes = CONFIGS[name]
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(prefix, f"{prefix}Config")
    config = getattr(transformers, config_name)(**{**COMMON, **changes})
    if name == "llama3":
        return make_model(folder, seed=seed, tie_word_embeddings=False)
    make_tokenizer(folder)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # transformers leaves some of them empty, and biases and sinks of zero would hide a mistake.
            if parameter_name.rsplit(".", 1)[-1] in ("gate_up_proj", "down_proj", "bias", "sinks", "weight") and (
                "norm" not in parameter_name
            ):
                parameter.normal_(0, 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
