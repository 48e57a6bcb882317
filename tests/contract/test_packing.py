"""What is in our files, read by hand and by compressed-tensors, is what the backend computed: every value, exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantize.backends import llmcompressor
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.files import read_json
from sqtool.progress import SILENT
from tests.contract import by_hand
from tests.contract.tiny import make_model

FORMATS: dict[str, tuple[str, list[Any]]] = {
    "rtn4": ("pack-quantized", ["rtn"]),
    "rtn4-asym-g32": ("pack-quantized", [{"rtn": {"scheme": "W4A16_ASYM", "group_size": 32}}]),
    "gptq4": ("pack-quantized", ["gptq"]),
    "gptq4-asym": ("pack-quantized", [{"gptq": {"scheme": "W4A16_ASYM"}}]),
    "gptq-w8a16": ("pack-quantized", [{"gptq": {"scheme": "W8A16"}}]),
    "awq-asym": ("pack-quantized", [{"awq": {"n_grid": 4}}]),
    "gptq-w8a8": ("int-quantized", [{"gptq": {"scheme": "W8A8"}}]),
    "reduced": ("int-quantized", [{"rtn": {"scheme": "W8A8", "reduce_range": True}}]),
    "fp8-dynamic": ("float-quantized", ["fp8"]),
    "fp8-static": ("float-quantized", [{"fp8": {"scheme": "FP8"}}]),
    "fp8-block": ("float-quantized", [{"fp8": {"scheme": "FP8_BLOCK"}}]),
    "nvfp4": ("nvfp4-pack-quantized", ["fp4"]),
    "gptq-nvfp4": ("nvfp4-pack-quantized", [{"gptq": {"scheme": "NVFP4A16"}}]),
    "mxfp4": ("mxfp4-pack-quantized", [{"fp4": {"scheme": "MXFP4"}}]),
}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By layer, the values that the backend rounded to, taken from its model just before it is written."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    found: dict[str, Any] = {}
    cast: Callable[..., None] = llmcompressor._cast_back

    def taking(model: Any, dtype: Any) -> None:
        cast(model, dtype)
        for name, module in model.named_modules():
            if llmcompressor._quantized(module):
                zero = getattr(module, "weight_zero_point", None)
                whole = getattr(module, "weight_global_scale", None)
                arguments = module.quantization_scheme.weights
                found[name] = fake_quantize(module.weight, module.weight_scale.float(), zero, arguments, whole)

    monkeypatch.setattr(llmcompressor, "_cast_back", taking)
    return found


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_value_is_read_as_it_was_computed(
    name: str, tiny_tokens: Path, tmp_path: Path, computed: dict[str, Any]
) -> None:
    import numpy as np
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file

    expected, methods = FORMATS[name]
    # 192 rows are no multiple of a block, so that its edges are there.
    model = make_model(tmp_path / "model", intermediate_size=192 if "block" in name else 256)
    spec = QuantizeSpec.model_validate({"methods": methods, "precision": "float32"})
    quantize(spec, model=model, calibration=tiny_tokens, seed=0, out=tmp_path, progress=SILENT)
    config = read_json(tmp_path / "checkpoint" / "config.json")["quantization_config"]
    assert config["format"] == expected
    (group,) = config["config_groups"].values()
    stored = by_hand.read(tmp_path / "checkpoint" / "model.safetensors")
    library = load_file(tmp_path / "checkpoint" / "model.safetensors")
    compressor = BaseCompressor.get_value_from_registry(expected)
    assert len(computed) == 14
    for layer, values in computed.items():
        ours = by_hand.weights(stored, layer, group["weights"])
        np.testing.assert_array_equal(ours, values.float().numpy(), err_msg=layer)
        parts = {key.removeprefix(f"{layer}."): value for key, value in library.items() if key.startswith(f"{layer}.")}
        theirs = compressor.decompress(parts, QuantizationScheme.model_validate(group))["weight"].float()
        # The library multiplies in the scale's own 16 bits: equal up to that one rounding.
        assert torch.allclose(theirs, torch.from_numpy(ours), rtol=2**-7, atol=0), layer


MIXED = [
    {"fp8": {"targets": ["re:.*self_attn.*_proj"]}},
    {"rtn": {"targets": ["re:.*mlp.*_proj"]}},
]
EARLY: dict[str, tuple[list[Any], int]] = {
    "fp8-dynamic": (["fp8"], 14),
    "rtn4-asym": ([{"rtn": {"scheme": "W4A16_ASYM"}}], 14),
    "mixed": (MIXED, 14),
    "mxfp4": ([{"fp4": {"scheme": "MXFP4"}}], 14),
    # One scale for q, k and v together is known only when all three were seen.
    "nvfp4a16": ([{"fp4": {"scheme": "NVFP4A16"}}], 0),
    # Codes of 7 bits are declared as 8 when all is rounded.
    "reduced": ([{"rtn": {"scheme": "W8A8", "reduce_range": True}}], 0),
    # The model still runs after it was rounded.
    "fp8-static": ([{"fp8": {"scheme": "FP8"}}], 0),
    "fp8-and-cache": (["fp8", "kv_cache"], 0),
}


@pytest.mark.parametrize("report", ["weights", "off"])
@pytest.mark.parametrize("name", list(EARLY))
def test_layers_packed_as_soon_as_they_are_rounded_are_the_same(
    name: str, report: str, tiny_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantize.backends import modifiers

    methods, early = EARLY[name]
    model = make_model(tmp_path / "model")
    # In the model's own dtype, as on an accelerator.
    spec = QuantizeSpec.model_validate({"methods": methods, "precision": "bfloat16", "layer_report": report})
    packed: list[Any] = []
    pack, compress = modifiers.compress_module, llmcompressor._compress

    def counting(module: Any) -> None:
        packed.append(module)
        pack(module)

    def late(*args: Any, **kwargs: Any) -> Any:
        return compress(*args, **{**kwargs, "pack": False})

    monkeypatch.setattr(modifiers, "compress_module", counting)
    results = {}
    for side in ("early", "late"):
        if side == "late":
            assert len(packed) == early
            monkeypatch.setattr(llmcompressor, "_compress", late)
        out = tmp_path / side
        out.mkdir()
        found = quantize(spec, model=model, calibration=tiny_tokens, seed=0, out=out, progress=SILENT)
        files = {path.name: path.read_bytes() for path in sorted((out / "checkpoint").iterdir())}
        for key in ("seconds", "peak_rss_bytes"):
            del found[key]
        results[side] = (found, files)
    assert len(packed) == early
    assert results["early"] == results["late"]
