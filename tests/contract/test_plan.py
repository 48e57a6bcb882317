"""What the plan says from headers alone is what quantizing then does, for every architecture of the support table."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.plan import plan
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT
from tests.contract.architectures import CONFIGS, make_architecture


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_layers_and_bytes_are_as_planned(architecture: str, tmp_path: Path) -> None:
    model = make_architecture(architecture, tmp_path / "model")
    spec = QuantizeSpec.model_validate({"methods": ["rtn"]})
    planned = plan(spec, model=model)
    done = quantize(spec, model=model, calibration=None, seed=0, out=tmp_path, progress=SILENT)
    assert planned["layers_quantized"] == done["layers_quantized"]
    assert sorted(planned["layers_left"]) == done["layers_left"]
    assert planned["bits_per_weight"] == pytest.approx(done["bits_per_weight"], abs=0.05)
    # Besides weights and scales there are sixteen bytes of shape for each packed layer.
    assert planned["bytes_after"] == pytest.approx(done["bytes_after"], abs=16 * done["layers_quantized"] + 64)


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_there_are_mappings(architecture: str, tmp_path: Path) -> None:
    model = make_architecture(architecture, tmp_path / "model")
    for methods in (["awq"], ["smoothquant", {"rtn": {"scheme": "W8A8"}}]):
        planned = plan(QuantizeSpec.model_validate({"methods": methods}), model=model)
        (resolved,) = planned["mappings"]
        assert any(m["layers"] for m in resolved["mappings"])
        assert planned["warnings"] == [], architecture
