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

    `group_size` is in weight columns, None for one scale per output channel. `activation_bits` is 16 when
    activations stay as they are.
    """

    bits: int
    type: Literal["int", "float"]
    group_size: int | None
    symmetric: bool
    activation_bits: int = 16

    @property
    def weight_only(self) -> bool:
        return self.activation_bits == 16

    def stored_bits(self, columns: int, *, scale_bits: int = 16) -> float:
        """Bits per weight of a layer with `columns` input features, scales and zero points included."""
        per_scale = self.group_size or columns
        zero_point = 0 if self.symmetric else self.bits
        # compressed-tensors packs densely, across word boundaries: 3 bits take 3 bits.
        return self.bits + (scale_bits + zero_point) / per_scale


SCHEMES: dict[str, Scheme] = {
    "W2A16": Scheme(2, "int", 128, True),
    "W3A16": Scheme(3, "int", 128, True),
    "W4A16": Scheme(4, "int", 128, True),
    "W4A16_ASYM": Scheme(4, "int", 128, False),
    "W8A16": Scheme(8, "int", 128, True),
    "W8A8": Scheme(8, "int", None, True, activation_bits=8),
    "FP8_DYNAMIC": Scheme(8, "float", None, True, activation_bits=8),
}
