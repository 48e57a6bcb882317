"""SmoothQuant: moves outlier channels from the activations into the weights, so that 8-bit activations fit.

https://arxiv.org/abs/2211.10438. A transform: a method that quantizes activations must follow.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from quantize.methods.base import MethodSpec, Modifier, Sensitivity


class SmoothQuantSpec(MethodSpec):
    """`smoothquant: {smoothing_strength: 0.5}`, followed by `gptq` or `rtn` with scheme W8A8, or `fp8`."""

    name: ClassVar[str] = "smoothquant"
    looks: ClassVar[Sensitivity] = "forward"
    scales_layers: ClassVar[bool] = True

    smoothing_strength: float = Field(default=0.5, ge=0, le=1)
    """0 leaves the outliers in the activations, 1 moves them into the weights altogether."""
    mappings: list[tuple[list[str], str]] | None = None
    """[layers that read the norm, the norm] pairs; llm-compressor knows them for most architectures."""
    ignore: list[str] = Field(default=[])
    """Layers whose outliers stay where they are: class names, full module names, or `re:` patterns."""

    def weights(self) -> None:
        return None

    def modifiers(self) -> list[Modifier]:
        arguments: dict[str, Any] = {"smoothing_strength": self.smoothing_strength, "ignore": list(self.ignore)}
        if self.mappings is not None:
            arguments["mappings"] = [[list(layers), norm] for layers, norm in self.mappings]
        return [Modifier("llmcompressor.modifiers.transform.smoothquant:SmoothQuantModifier", arguments)]
