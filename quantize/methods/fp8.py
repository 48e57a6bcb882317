"""FP8 (E4M3) weights, one scale per output channel; activations scaled per token at run time. No calibration."""

from __future__ import annotations

from typing import ClassVar

from quantize.methods.base import Modifier, QuantizingSpec


class Fp8Spec(QuantizingSpec):
    """`fp8: {scheme: FP8_DYNAMIC}`."""

    name: ClassVar[str] = "fp8"
    schemes: ClassVar[tuple[str, ...]] = ("FP8_DYNAMIC",)

    scheme: str = "FP8_DYNAMIC"

    def modifiers(self) -> list[Modifier]:
        target = "llmcompressor.modifiers.quantization:QuantizationModifier"
        return [Modifier(target, self.quantization_arguments())]
