"""GPTQ: rounds a layer's weights column by column and lets the later columns make up for the error.

https://arxiv.org/abs/2210.17323
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from quantize.methods.base import Modifier, QuantizingSpec, Sensitivity


class GptqSpec(QuantizingSpec):
    """`gptq: {scheme: W4A16}`, or `W8A8` after `smoothquant`."""

    name: ClassVar[str] = "gptq"
    schemes: ClassVar[tuple[str, ...]] = ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "NVFP4A16")
    looks: ClassVar[Sensitivity] = "hessian"

    scheme: str = "W4A16"
    block_size: int = Field(default=128, ge=1)
    """Columns that are rounded before the rest of the layer is updated."""
    dampening_frac: float = Field(default=0.01, gt=0, lt=1)
    """Added to the Hessian's diagonal, as a fraction of its mean."""
    actorder: Literal["static"] | None = "static"
    """Take the columns in order of their activations (costs nothing at run time), or, with null, as they come."""

    @field_validator("actorder", mode="before")
    @classmethod
    def _retired(cls, value: object) -> object:
        if isinstance(value, str) and value.lower() in ("group", "dynamic"):
            raise ValueError(
                f"llm-compressor has retired actorder {value!r}, whose checkpoints stored an order of columns that "
                "slowed kernels down; use static (the default) or null"
            )
        return "static" if value == "weight" else value

    def modifiers(self) -> list[Modifier]:
        arguments: dict[str, Any] = {
            **self.quantization_arguments(),
            "block_size": self.block_size,
            "dampening_frac": self.dampening_frac,
            "actorder": self.actorder,
        }
        return [Modifier("llmcompressor.modifiers.gptq:GPTQModifier", arguments)]
