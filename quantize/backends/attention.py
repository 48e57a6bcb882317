"""Attention of calibration without writing every score to memory. Import it only inside functions.

llm-compressor 0.14 asks every model for its `eager` attention, because that always makes a mask, which the traced parts
of a model then carry with them. Eager attention writes the scores of all heads to memory, tokens x tokens, four times
over. PyTorch's fused kernel takes the same mask and writes none. On a CPU in bf16 plain products are faster than that
kernel if made a row at a time: a row's scores stay in the processor's cache (benchmarks/calibration/parts.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

EAGER = "eager"


def fuses(model: Any) -> bool:
    """Whether the fused kernel computes this model's attention: transformers has chosen it for the model by itself, and
    no score is capped, which the kernel cannot."""
    config = model.config.get_text_config()
    return model.config._attn_implementation == "sdpa" and not getattr(config, "attn_logit_softcapping", None)


@contextmanager
def fused_attention(model: Any) -> Iterator[None]:
    """Inside, a model whose `eager` attention is asked for computes it with `attend` where that `fuses`."""
    if not fuses(model) or EAGER in ALL_ATTENTION_FUNCTIONS:
        yield
        return
    ALL_ATTENTION_FUNCTIONS[EAGER] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[EAGER]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa_attention_forward`: `query`, `key`, `value` are (rows, heads, tokens, head size), `key` and
    `value` with fewer heads in grouped-query attention; the result is (rows, tokens, heads, head size)."""
    plain = attention_mask is None or not attention_mask.is_floating_point() or dropout or scaling is None
    if plain or query.device.type != "cpu" or query.dtype != torch.bfloat16:
        made, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return made, None
    assert attention_mask is not None
    heads = query.shape[1]
    key, value = (repeat_kv(tensor, heads // tensor.shape[1]) for tensor in (key, value))
    made = torch.empty_like(query)
    for row, mask in enumerate(attention_mask.expand(len(query), heads, -1, -1)):
        scores = torch.baddbmm(mask, query[row], key[row].mT, alpha=scaling)
        torch.matmul(scores.softmax(-1), value[row], out=made[row])
    return made.transpose(1, 2).contiguous(), None
