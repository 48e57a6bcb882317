from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.activations.traffic import Sample
from tests.contract.tiny import make_model

EXPERTS = 6
MOES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama."""
    return make_model(tmp_path_factory.mktemp("activations") / "model")


@pytest.fixture(scope="session")
def llama(tiny: Path) -> Any:
    """The same in float32, in memory."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype="float32").eval()


def samples(n: int, seed: int, kind: str = "plain", *, low: int = 3, high: int = 259) -> list[Sample]:
    """Random conversations of 8 to 40 tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(8, 41, n)
    return [Sample(tuple(random.integers(low, high, length).tolist()), kind) for length in lengths]


def moe(model_type: str, *, avoid: int | None = None) -> Any:
    """A tiny random mixture of experts in memory, two layers; in the last one the router never selects `avoid`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "vocab_size": 320,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if model_type == "qwen3_moe":
        settings["num_experts"] = settings.pop("num_local_experts")
    if model_type == "deepseek_v3":
        settings |= {"n_routed_experts": settings.pop("num_local_experts"), "n_group": 1, "topk_group": 1}
        settings |= {"first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "num_key_value_heads": 4}
        settings |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
        del settings["head_dim"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    if avoid is not None:
        _steer_away(model, avoid)
    return model


def _steer_away(model: Any, expert: int) -> None:
    import torch

    last = model.model.layers[-1]
    router = getattr(last.mlp, "gate", None) or last.mlp.router
    with torch.no_grad():
        # One channel is the same for every token, all the way down and no larger than the others are (they still decide
        # among the other experts); the router dislikes it for that expert.
        model.get_input_embeddings().weight[:, 0] = model.config.initializer_range
        for layer in model.model.layers:
            for name, weight in layer.named_parameters():
                if name.endswith("o_proj.weight"):
                    weight[0] = 0
        for name, weight in model.named_parameters():
            if "down_proj" in name and "bias" not in name:
                # Experts are stacked [experts, hidden, intermediate], GPT-OSS has the last two the other way round.
                (weight[..., 0, :] if weight.shape[-2] == 32 else weight[..., 0]).fill_(0)
        router.weight[:, 0] = 0
        router.weight[expert, 0] = -1000
