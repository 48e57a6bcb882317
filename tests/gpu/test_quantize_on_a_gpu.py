"""Where hidden states wait between two decoder layers, and which kernel attends, change the time of a calibration and
nothing else; what tensor cores lose of GPTQ's Hessians is far below its damping."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from quantize.backends import attention
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT
from tests.contract import by_hand
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


def test_fused_attention_sees_the_same_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    model = make_model(tmp_path / "model")
    tokens = make_tokens(tmp_path / "tokens.safetensors")

    def scales(name: str) -> dict[str, Any]:
        out = tmp_path / name
        out.mkdir()
        spec = QuantizeSpec.model_validate({"methods": [{"fp8": {"scheme": "FP8"}}], "precision": "float32"})
        quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)
        stored = by_hand.read(out / "checkpoint" / "model.safetensors")
        return {name: value for name, value in stored.items() if name.endswith("input_scale")}

    calls: list[int] = []
    kernel = attention.sdpa_attention_forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counting)
    fused = scales("fused")
    assert calls
    calls.clear()
    monkeypatch.setattr(attention, "fuses", lambda model: False)
    eager = scales("eager")
    assert not calls
    assert fused.keys() == eager.keys()
    for name, value in eager.items():
        np.testing.assert_allclose(fused[name], value, rtol=0.01, err_msg=name)  # bf16 in the file


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_products_of_inputs_are_near(name: str) -> None:
    import torch

    from quantize.backends.gptq import gram

    torch.manual_seed(0)
    inputs = (torch.randn(16, 512, 1024, device="cuda") * (10 * torch.rand(1024, device="cuda"))).to(
        getattr(torch, name)
    )
    rows = inputs.flatten(0, 1).double()
    exact = 2 * rows.t() @ rows
    norms = exact.diagonal().sqrt()
    assert ((gram(inputs) - exact).abs() / (norms[:, None] * norms)).max() < 5e-5
