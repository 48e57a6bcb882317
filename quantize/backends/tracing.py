"""Whether llm-compressor runs a model as it is, part by part. Import it only inside functions.

It traces the model into parts and runs those with attention masks that it has the model make. Where a model picks its
mask function at run time (Mistral, Mixtral, Qwen3-MoE, Phi 3 and others), llm-compressor 0.14 hands that function a
copy of the model's configuration which has lost the kind of attention: no mask comes back, and every token sees those
after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from compressed_tensors.utils import patch_attr
from llmcompressor.core import active_session
from llmcompressor.pipelines.sequential import helpers
from torch.fx import _symbolic_trace
from transformers import PretrainedConfig

from sqtool.errors import InfrastructureError

ALIKE, MOST = 0.99, 0.9
"""Cosine similarity for one token: rounding stays far above it, another function falls far below. Most tokens have to
reach it, not all: in 16 bits a router sends now and then a token to another expert."""
SHORTEST, BEYOND = 128, 32
"""The part of a row that is compared: tokens, and how far into its second conversation. The model itself is in host
memory, where a long row takes seconds; later tokens do not matter to those before them."""


class _Tracer(helpers.SequentialTracer):
    """Keeps the kind of attention in the configurations that become part of a traced graph."""

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, PretrainedConfig):
            values = {key: self.create_arg(value) for key, value in a.to_dict().items()}
            return self.create_node("call_function", type(a), (), {**values, "attn_implementation": "eager"})
        return super().create_arg(a)


@contextmanager
def released() -> Iterator[None]:
    """After it, nothing but the caller holds a model that llm-compressor has worked on.

    torch.fx keeps the names of every traced forward pass for as long as the process lives, and llm-compressor puts the
    model among them; its session keeps the last model.
    """
    known = dict(_symbolic_trace._wrapped_fns_to_patch)
    try:
        yield
    finally:
        _symbolic_trace._wrapped_fns_to_patch.clear()
        _symbolic_trace._wrapped_fns_to_patch.update(known)
        active_session().reset()


@contextmanager
def true_to_the_model(model: Any, layer: Any, batch: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Inside, what the pipeline makes of its first `batch` in the first decoder `layer` is compared with what the model
    itself makes of it.

    Raises InfrastructureError when they differ: everything that calibration finds would be about another model.
    """
    from quantize.backends.rows import output_of

    with patch_attr(helpers, "SequentialTracer", _Tracer):
        if batch is None:
            yield
            return
        part = {name: values[:1, : _enough(batch)] for name, values in batch.items()}
        expected = output_of(model, layer, part)[0]

        def compare(_module: Any, _inputs: Any, output: Any) -> None:
            hook.remove()
            got = (output[0] if isinstance(output, tuple) else output)[0, : len(expected)].to(expected.device)
            if not alike(expected, got):
                raise InfrastructureError(
                    f"llm-compressor does not compute what {type(model).__name__} computes, so its calibration would "
                    "be about another model",
                    remedy="Use a method that needs no calibration (rtn, fp8), and report the architecture.",
                )

        hook = layer.register_forward_hook(compare)
        try:
            yield
        finally:
            hook.remove()


def alike(expected: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether hidden states [tokens, hidden] are the same but for rounding. What is not finite says nothing: a model
    that makes NaN of its input is found by the check of its layers, which names the one."""
    likeness = torch.nn.functional.cosine_similarity(expected.float(), got.float(), dim=-1)
    return not torch.isfinite(expected).all() or bool((likeness > ALIKE).float().mean() >= MOST)


def _enough(batch: dict[str, torch.Tensor]) -> int:
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist() if "position_ids" in batch else []
    return max(SHORTEST, starts[1] + BEYOND if len(starts) > 1 else 0)
