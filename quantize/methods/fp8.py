"""FP8 (E4M3) weights and activations.

FP8_DYNAMIC: weights with one scale per output channel, activations scaled per token at run time; no calibration. FP8:
one scale for a layer's weights and one for its activations, the latter from calibration. FP8_BLOCK: weights in blocks
of 128 x 128, activations in groups of 128 per token at run time, as DeepSeek-V3 was trained; no calibration.
"""

from __future__ import annotations

from typing import ClassVar

from quantize.methods.base import Modifier, QuantizingSpec


class Fp8Spec(QuantizingSpec):
    """`fp8: {scheme: FP8_DYNAMIC}`, or FP8 (static), or FP8_BLOCK."""

    name: ClassVar[str] = "fp8"
    schemes: ClassVar[tuple[str, ...]] = ("FP8_DYNAMIC", "FP8", "FP8_BLOCK")

    scheme: str = "FP8_DYNAMIC"

    def modifiers(self) -> list[Modifier]:
        target = "llmcompressor.modifiers.quantization:QuantizationModifier"
        return [Modifier(target, self.quantization_arguments())]
