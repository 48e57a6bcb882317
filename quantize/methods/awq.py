"""AWQ: scales the input channels that see large activations, so that rounding hurts them less.

https://arxiv.org/abs/2306.00978. In llm-compressor 0.14 `AWQModifier` only scales; the rounding is a
`QuantizationModifier` after it. A recipe says `awq` and gets both.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from quantize.methods.base import Modifier, QuantizingSpec, Sensitivity
from sqtool.spec import Spec


class AwqMapping(Spec):
    """One layer whose output is scaled down, and the layers that read it and are scaled up."""

    smooth_layer: str
    """The layer (a norm, or a projection) whose output is scaled down: a name or a `re:` pattern."""
    balance_layers: list[str] = Field(min_length=1)
    """The layers that read that output."""


class AwqSpec(QuantizingSpec):
    """`awq: {scheme: W4A16_ASYM, group_size: 128, duo_scaling: true}`."""

    name: ClassVar[str] = "awq"
    schemes: ClassVar[tuple[str, ...]] = ("W4A16", "W4A16_ASYM", "W8A16")
    looks: ClassVar[Sensitivity] = "grid"
    scales_layers: ClassVar[bool] = True

    scheme: str = "W4A16_ASYM"
    duo_scaling: bool | Literal["both"] = True
    """Take the weights' size into the scale too, not only the activations'; `both` tries each."""
    n_grid: int = Field(default=20, ge=4)
    """Scales tried per layer; the time grows with it."""
    mappings: list[AwqMapping] | None = None
    """llm-compressor knows them for most architectures."""

    def modifiers(self) -> list[Modifier]:
        arguments: dict[str, Any] = {"duo_scaling": self.duo_scaling, "n_grid": self.n_grid}
        if self.mappings is not None:
            arguments["mappings"] = [m.model_dump() for m in self.mappings]
        return [
            Modifier("llmcompressor.modifiers.transform.awq:AWQModifier", arguments),
            Modifier("llmcompressor.modifiers.quantization:QuantizationModifier", self.quantization_arguments()),
        ]
