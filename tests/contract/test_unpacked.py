"""What the engine serves instead of packed weights is what unpacking them by hand gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.unpacked import unpack
from quantize import fake
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.errors import EngineError
from sqtool.files import read_json
from sqtool.progress import SILENT


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A16"])
def test_two_ways_to_unpack_agree(scheme: str, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = QuantizeSpec.model_validate({"methods": [{"rtn": {"scheme": scheme}}]})
    quantize(spec, model=tiny_model, calibration=None, seed=0, out=tmp_path, progress=SILENT)
    unpack(tmp_path / "checkpoint", tmp_path / "served")
    fake.unpack(tmp_path / "checkpoint", tmp_path / "by-hand")
    served: dict[str, Any] = load_file(tmp_path / "served" / "model.safetensors")
    by_hand: dict[str, Any] = load_file(tmp_path / "by-hand" / "model.safetensors")
    original: dict[str, Any] = load_file(tiny_model / "model.safetensors")
    assert served.keys() == by_hand.keys() == original.keys()
    for name, tensor in served.items():
        # In 16 bits, one rounding apart: the library multiplies in the scale's type, the other way in float32.
        assert tensor.dtype == original[name].dtype
        assert tensor.float().sub(by_hand[name].float()).abs().max() <= by_hand[name].float().abs().max() / 128
    assert "quantization_config" not in read_json(tmp_path / "served" / "config.json")
    assert (tmp_path / "served" / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_a_damaged_checkpoint_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(EngineError, match="cannot be unpacked"):
        unpack(broken, tmp_path / "served")
    assert not (tmp_path / "served").exists()
