"""What a scheme name stores: bits, groups, symmetry, activations.

The names and values are the presets of compressed-tensors (`compressed_tensors.quantization.quant_scheme`); a contract
test compares this table with the installed library. It is repeated here so that `plan` needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scheme:
    """How one linear layer is stored and run.

    `group_size` is in weight columns, `block` in (rows, columns); with neither there is one scale per output channel,
    or one for the whole layer where `per_tensor` says so. `activation_bits` is 16 when activations stay as they are.
    """

    bits: int
    type: Literal["int", "float"]
    group_size: int | None
    symmetric: bool
    activation_bits: int = 16
    block: tuple[int, int] | None = None
    per_tensor: bool = False
    scale_bits: int = 16
    calibrated: bool = False
    """Are the scales of the activations, or a part of them, taken from calibration data?"""

    @property
    def weight_only(self) -> bool:
        return self.activation_bits == 16

    def stored_bits(self, columns: int) -> float:
        """Bits per weight of a layer with `columns` input features, scales and zero points included."""
        if self.per_tensor:
            return float(self.bits)
        per_scale = self.block[0] * self.block[1] if self.block else self.group_size or columns
        zero_point = 0 if self.symmetric else self.bits
        # compressed-tensors packs densely, across word boundaries: 3 bits take 3 bits.
        return self.bits + (self.scale_bits + zero_point) / per_scale


SCHEMES: dict[str, Scheme] = {
    "W2A16": Scheme(2, "int", 128, True),
    "W3A16": Scheme(3, "int", 128, True),
    "W4A16": Scheme(4, "int", 128, True),
    "W4A16_ASYM": Scheme(4, "int", 128, False),
    "W8A16": Scheme(8, "int", 128, True),
    "W8A8": Scheme(8, "int", None, True, activation_bits=8),
    "FP8_DYNAMIC": Scheme(8, "float", None, True, activation_bits=8),
    "FP8": Scheme(8, "float", None, True, activation_bits=8, per_tensor=True, calibrated=True),
    "FP8_BLOCK": Scheme(8, "float", None, True, activation_bits=8, block=(128, 128)),
    "NVFP4A16": Scheme(4, "float", 16, True, scale_bits=8),
    "NVFP4": Scheme(4, "float", 16, True, activation_bits=4, scale_bits=8, calibrated=True),
    "MXFP4A16": Scheme(4, "float", 32, True, scale_bits=8),
    "MXFP4": Scheme(4, "float", 32, True, activation_bits=4, scale_bits=8),
}
INT_SCHEMES = tuple(name for name, scheme in SCHEMES.items() if scheme.type == "int")
