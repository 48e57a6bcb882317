"""The recipe section `calibrate.activations:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sqtool.spec import Spec


class ActivationsSpec(Spec):
    """Coverage at the model level: does traffic reach values and experts that calibration never did?"""

    traffic_tokens: int = Field(
        default=16384, ge=1, description="About how many tokens of traffic go through the model (whole conversations)."
    )
    calibration_tokens: int = Field(
        default=65536,
        ge=1,
        description="The same for the calibration set. What is left out cannot raise the calibrated maximum, so a low "
        "number here makes coverage look worse than it is.",
    )
    max_length: int = Field(default=4096, ge=1, description="Tokens kept of one conversation of the traffic.")
    batch_tokens: int = Field(default=4096, ge=1, description="Tokens, padding included, of one forward pass.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Type of the forward passes; auto is the model's own, but float32 on a CPU without AVX-512, where "
        "bfloat16 is several times slower.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the forward passes run.")
    max_range_ratio: float = Field(
        default=1.5,
        ge=1,
        description="Most that the largest traffic activation of a layer may be of its calibrated maximum. A static "
        "scale clips what lies beyond.",
    )
    max_saturated: float = Field(
        default=0.005,
        ge=0,
        lt=1,
        description="Largest share of traffic tokens, in any layer, that reach beyond the layer's calibrated maximum.",
    )
    max_beyond_channel: float = Field(
        default=0.005,
        ge=0,
        lt=1,
        description="Largest share of traffic values, in any layer, beyond the calibrated maximum of their channel.",
    )
    max_kv_ratio: float = Field(
        default=1.5, ge=1, description="As max_range_ratio, for the keys and values of each layer's KV cache."
    )
    min_tokens_per_expert: int = Field(
        default=16,
        ge=0,
        description="Fewest calibration tokens that the unmodified model's router must send to each expert; 0 asks for "
        "nothing. Calibrating all experts with all tokens does not change what the router selects.",
    )
