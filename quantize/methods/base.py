"""What every quantization method of a recipe has in common.

A method is one file here with one small strict model, and one line in `quantize.methods.METHODS`. Its keys are
llm-compressor's own. It says what it stores (`weights`) and which llm-compressor modifiers do it (`modifiers`), as
names and arguments only: nothing heavy is imported to read a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from quantize.layers import ROUTERS
from quantize.schemes import SCHEMES, Scheme
from sqtool.errors import did_you_mean
from sqtool.spec import Spec

REDUCED_BITS = 7
"""Bits of a weight code with `reduce_range`; the backend stores and declares them as 8."""
Sensitivity = Literal["none", "forward", "hessian", "grid"]


@dataclass(frozen=True)
class Modifier:
    """One llm-compressor modifier: `module:Class` and its keyword arguments."""

    target: str
    arguments: dict[str, Any]


class MethodSpec(Spec):
    """Base of all methods. `targets` and `ignore` are module class names (`Linear`), full module names, or `re:`
    patterns that must match from the start of the name."""

    name: ClassVar[str]
    """The method's name in recipes."""
    looks: ClassVar[Sensitivity] = "none"
    """What the method itself does with calibration data."""
    scales_layers: ClassVar[bool] = False
    """Does it rescale weights of the model before anything is rounded? Then it comes before all that rounds."""

    @property
    def calibration(self) -> Sensitivity:
        """What is done with calibration data, the scheme's needs included; decides the estimate of its time."""
        scheme = self.weights()
        return "forward" if self.looks == "none" and scheme is not None and scheme.calibrated else self.looks

    def weights(self) -> Scheme | None:
        """How this method stores the layers it matches; None when it only prepares the model for the next one."""
        raise NotImplementedError

    def modifiers(self) -> list[Modifier]:
        """The llm-compressor modifiers that do it, in order."""
        raise NotImplementedError

    @property
    def quantizes(self) -> bool:
        """Does a checkpoint come out of this method alone?"""
        return self.weights() is not None

    @property
    def needs_calibration(self) -> bool:
        return self.calibration != "none"


def _name_schemes(schema: dict[str, Any], method: type[QuantizingSpec]) -> None:
    """Put the schemes that a method can write into its JSON Schema, where an editor offers them."""
    schema["properties"]["scheme"] |= {"enum": list(method.schemes), "description": "How weights are stored."}


class QuantizingSpec(MethodSpec):
    """A method that quantizes the layers it matches, by one scheme."""

    model_config = ConfigDict(json_schema_extra=_name_schemes)

    schemes: ClassVar[Sequence[str]] = tuple(SCHEMES)
    """The schemes that this method can write."""

    scheme: str
    targets: list[str] = Field(default=["Linear"], min_length=1)
    """Layers to quantize: module class names, full module names, or `re:` patterns."""
    ignore: list[str] = Field(default=["lm_head"])
    """Layers to leave alone, named as in `targets`. Routers of mixtures of experts always are, whatever is written
    here."""
    group_size: int | None = Field(default=None, ge=16, multiple_of=8)
    """Weight columns that share one scale, e.g. 32, 64 or 128; the scheme's own (128) when not given."""
    symmetric: bool | None = None
    """Without zero points; the scheme's own when not given."""
    reduce_range: bool = False
    """For W8A8: weight codes from -64 to 64 instead of -127 to 127, stored as INT8 all the same. Processors without
    VNNI instructions add products of INT8 in 16 bits and saturate with the full range: vLLM's results are then wrong by
    10 % and more. Costs one bit of the weights; not needed on GPUs or newer processors. The term is ONNX Runtime's."""

    @field_validator("scheme")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in cls.schemes:
            raise ValueError(f"{cls.name} has no scheme {value!r}; {did_you_mean(value, list(cls.schemes))}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> QuantizingSpec:
        preset = SCHEMES[self.scheme]
        if self.group_size is not None and preset.group_size is None:
            per = "layer" if preset.per_tensor else "block of 128 x 128" if preset.block else "output channel"
            raise ValueError(f"scheme {self.scheme} has one scale per {per}, so it takes no group_size")
        if self.group_size is not None and preset.type == "float":
            raise ValueError(f"scheme {self.scheme} has groups of {preset.group_size} by definition; drop group_size")
        if self.symmetric is False and not (preset.weight_only and preset.type == "int"):
            raise ValueError(f"scheme {self.scheme} is symmetric; zero points exist for weight-only integer schemes")
        if self.reduce_range and (preset.type, preset.activation_bits) != ("int", 8):
            raise ValueError(f"reduce_range is for scheme W8A8, and this is {self.scheme}")
        return self

    def weights(self) -> Scheme:
        scheme = SCHEMES[self.scheme]
        if self.group_size is not None:
            scheme = replace(scheme, group_size=self.group_size)
        if self.symmetric is not None:
            scheme = replace(scheme, symmetric=self.symmetric)
        return scheme

    def quantization_arguments(self) -> dict[str, Any]:
        """`scheme` when the preset says it all, else the same as `config_groups` (llm-compressor has no argument
        for the group size of a preset)."""
        chosen, ignore = self.weights(), [*self.ignore, ROUTERS]
        if self.reduce_range:
            activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
            weights = {"num_bits": REDUCED_BITS, "type": "int", "symmetric": True, "strategy": "channel"}
            group: dict[str, Any] = {
                "targets": list(self.targets),
                "weights": weights,
                "input_activations": activations,
            }
            return {"ignore": ignore, "config_groups": {"group_0": group}}
        if chosen == SCHEMES[self.scheme]:
            return {"targets": list(self.targets), "ignore": ignore, "scheme": self.scheme}
        group = {
            "targets": list(self.targets),
            "weights": {
                "num_bits": chosen.bits,
                "type": chosen.type,
                "symmetric": chosen.symmetric,
                "strategy": "group",
                "group_size": chosen.group_size,
                "dynamic": False,
            },
        }
        return {"ignore": ignore, "config_groups": {"group_0": group}}
