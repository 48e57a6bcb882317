"""Round to nearest: no calibration, each weight goes to the nearest value of its grid. The reference point."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from quantize.methods.base import Modifier, QuantizingSpec

RUNNABLE_BITS = (4, 8)


class RtnSpec(QuantizingSpec):
    """`rtn: {scheme: W4A16}`; with `simulate` the rounded values are written as ordinary 16-bit weights."""

    name: ClassVar[str] = "rtn"

    scheme: str = "W4A16"
    simulate: bool = False
    """Write the dequantized values in the model's own dtype: the accuracy of the scheme, not its size or speed.
    For schemes that no kernel of the runtime can run, e.g. 2 and 3 bits."""

    @model_validator(mode="after")
    def _runnable(self) -> RtnSpec:
        weights = self.weights()
        if not self.simulate and weights.weight_only and weights.bits not in RUNNABLE_BITS:
            raise ValueError(
                f"no vLLM kernel runs {weights.bits}-bit weights; `simulate: true` writes them as 16-bit weights"
            )
        if self.simulate and not weights.weight_only:
            raise ValueError(f"simulate is for weight-only schemes, and {self.scheme} quantizes activations too")
        if self.simulate and weights.type != "int":
            raise ValueError(f"simulate is for integer schemes, and {self.scheme} is none")
        return self

    def modifiers(self) -> list[Modifier]:
        target = "llmcompressor.modifiers.quantization:QuantizationModifier"
        return [Modifier(target, self.quantization_arguments())]
