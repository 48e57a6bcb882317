"""FP4 (E2M1) weights in small groups: NVFP4 (groups of 16, FP8 scales) and MXFP4 (groups of 32, power-of-two scales).

The `A16` schemes quantize weights only. NVFP4 also quantizes activations, with one scale per layer from calibration and
group scales at run time; MXFP4 quantizes activations without calibration. Rounding is to the nearest value; for GPTQ's
rounding use `gptq: {scheme: NVFP4A16}`.
"""

from __future__ import annotations

from typing import ClassVar

from quantize.methods.base import Modifier, QuantizingSpec


class Fp4Spec(QuantizingSpec):
    """`fp4: {scheme: NVFP4}`."""

    name: ClassVar[str] = "fp4"
    schemes: ClassVar[tuple[str, ...]] = ("NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16")

    scheme: str = "NVFP4"

    def modifiers(self) -> list[Modifier]:
        target = "llmcompressor.modifiers.quantization:QuantizationModifier"
        return [Modifier(target, self.quantization_arguments())]
