"""The KV cache in FP8 (E4M3): half the memory of a 16-bit cache, so about twice the tokens in flight.

Its scales are static and come from calibration: the largest |key| and |value| seen, divided by 448. Without them a
runtime uses scales of 1, which cuts off whatever is larger than 448 and rounds small values to nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from quantize.methods.base import MethodSpec, Modifier, Sensitivity

MATCHES_NOTHING = "re:(?!)"
"""llm-compressor gives every linear layer an empty scheme when it is told of no layers, and so undoes other methods."""


class KvCacheSpec(MethodSpec):
    """`kv_cache: {dtype: fp8, strategy: tensor}`, alone or after any other method."""

    name: ClassVar[str] = "kv_cache"
    looks: ClassVar[Sensitivity] = "forward"

    dtype: Literal["fp8"] = "fp8"
    """What keys and values are stored in: FP8 E4M3."""
    strategy: Literal["tensor", "attn_head"] = "tensor"
    """One scale for a layer's keys and one for its values (`tensor`), or one for each head (`attn_head`), which fewer
    attention kernels of vLLM can use."""

    def weights(self) -> None:
        return None

    @property
    def quantizes(self) -> bool:
        return True

    def modifiers(self) -> list[Modifier]:
        cache = {
            "num_bits": 8,
            "type": "float",
            "strategy": self.strategy,
            "symmetric": True,
            "dynamic": False,
            # The extremes seen. The library's default is a moving average that hardly leaves the first batch.
            "observer": "static_minmax",
        }
        arguments = {"config_groups": {"group_0": {"targets": [MATCHES_NOTHING]}}, "kv_cache_scheme": cache}
        return [Modifier("llmcompressor.modifiers.quantization:QuantizationModifier", arguments)]
