"""Where hidden states wait between two decoder layers changes the time of a calibration and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT
from tests.contract.tiny import make_model, make_tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("method", [{"gptq": {"scheme": "W4A16"}}, {"awq": {"scheme": "W4A16_ASYM", "n_grid": 4}}])
def test_the_same_bytes(method: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    tokens = make_tokens(tmp_path / "tokens.safetensors")

    def made(place: str) -> str:
        out = tmp_path / place
        out.mkdir()
        spec = QuantizeSpec.model_validate({"methods": [method], "sequential_offload_device": place})
        quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)
        return hashlib.sha256((out / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()

    assert made("auto") == made("cpu")
