"""Attention of calibration in one kernel. Import it only inside functions.

llm-compressor 0.14 asks every model for its `eager` attention, because that always makes a mask, which the traced parts
of a model then carry with them. Eager attention writes the scores of all heads to memory, tokens x tokens, four times
over: with AWQ on two cores a third of the whole calibration. PyTorch's fused kernel takes the same mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

EAGER = "eager"


def fuses(model: Any) -> bool:
    """Whether the fused kernel computes this model's attention: transformers has chosen it for the model by itself, and
    no score is capped, which the kernel cannot."""
    config = model.config.get_text_config()
    return model.config._attn_implementation == "sdpa" and not getattr(config, "attn_logit_softcapping", None)


@contextmanager
def fused_attention(model: Any) -> Iterator[None]:
    """Inside, a model whose `eager` attention is asked for computes it with the fused kernel where that `fuses`."""
    if not fuses(model) or EAGER in ALL_ATTENTION_FUNCTIONS:
        yield
        return
    ALL_ATTENTION_FUNCTIONS[EAGER] = sdpa_attention_forward
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[EAGER]
