"""Our table of schemes says what the installed compressed-tensors does."""

from __future__ import annotations

import pytest

from quantize.schemes import SCHEMES


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_a_scheme_is_the_preset_of_that_name(name: str) -> None:
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    ours, preset = SCHEMES[name], preset_name_to_scheme(name, ["Linear"])
    weights = preset.weights
    assert weights is not None
    assert (weights.num_bits, str(weights.type.value if hasattr(weights.type, "value") else weights.type)) == (
        ours.bits,
        ours.type,
    )
    assert weights.group_size == ours.group_size
    assert weights.block_structure == (list(ours.block) if ours.block else None)
    assert (weights.strategy == "tensor") == ours.per_tensor
    assert weights.symmetric == ours.symmetric
    activations = preset.input_activations
    assert (activations.num_bits if activations is not None else 16) == ours.activation_bits
    # Scales of activations come from calibration, or a part of them, unless they are found at run time altogether.
    assert ours.calibrated == (activations is not None and activations.dynamic is not True)
