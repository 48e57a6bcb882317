"""What calibration computes in."""

from __future__ import annotations

from sqtool.cores import multiplies_bf16


def computed_in(precision: str, stored: str, *, accelerator: bool) -> str:
    """The dtype (torch's name) that `quantize.precision` means for a model whose weights are `stored` in one."""
    if precision != "auto":
        return precision
    fast = accelerator or (stored == "bfloat16" and multiplies_bf16())
    return stored if fast else "float32"
