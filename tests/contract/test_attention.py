"""Calibration computes attention with the fused kernel where transformers does, and sees what it saw with eager
attention."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantize.backends import attention
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT
from tests.contract import by_hand
from tests.contract.architectures import CONFIGS, make_architecture
from tests.contract.tiny import make_model, make_tokens

FUSED = sorted(set(CONFIGS) - {"gpt-oss"})  # its sinks are part of the softmax, and it has eager attention only


def scales(model: Path, tokens: Path, out: Path) -> dict[str, Any]:
    """Scales of the inputs, which are the ranges that calibration saw."""
    out.mkdir()
    spec = QuantizeSpec.model_validate({"methods": [{"fp8": {"scheme": "FP8"}}], "precision": "float32"})
    quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)
    stored = by_hand.read(out / "checkpoint" / "model.safetensors")
    return {name: value for name, value in stored.items() if name.endswith("input_scale")}


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_the_same_ranges(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    model = make_architecture(architecture, tmp_path / "model")
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    calls: list[int] = []
    kernel = attention.sdpa_attention_forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        assert args[4] is not None, "without a mask every token would see those after it"
        return kernel(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counting)
    fused = scales(model, tokens, tmp_path / "fused")
    assert bool(calls) == (architecture in FUSED)
    calls.clear()
    monkeypatch.setattr(attention, "fuses", lambda model: False)
    eager = scales(model, tokens, tmp_path / "eager")
    assert not calls
    assert fused.keys() == eager.keys()
    for name, value in eager.items():
        np.testing.assert_allclose(fused[name], value, rtol=0.01, err_msg=name)  # bf16 in the file


def test_capped_scores_stay_eager(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model"))
    assert attention.fuses(model)
    model.config.attn_logit_softcapping = 50.0
    assert not attention.fuses(model)


def test_transformers_is_as_it_was() -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(_attn_implementation="sdpa")
    model = SimpleNamespace(config=SimpleNamespace(**vars(config), get_text_config=lambda: config))

    def interrupted() -> None:
        with attention.fused_attention(model):
            assert attention.EAGER in attention.ALL_ATTENTION_FUNCTIONS
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert attention.EAGER not in attention.ALL_ATTENTION_FUNCTIONS


@pytest.mark.parametrize("heads", [6, 2])
def test_bf16_on_a_cpu_is_as_near_as_the_kernel(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two conversations in each row, against attention in float64."""
    import torch

    torch.manual_seed(0)
    query, key, value = (torch.randn(3, count, 40, 32).bfloat16() for count in (6, heads, heads))
    mask = torch.full((3, 1, 40, 40), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    for start, end in ((0, 17), (17, 40)):
        mask[..., start:end, start:end].triu_(1)
    module = SimpleNamespace(num_key_value_groups=6 // heads, is_causal=True, training=False)

    def attended(dtype: torch.dtype, function: Any) -> Any:
        given = (tensor.to(dtype) for tensor in (query, key, value, mask))
        return function(module, *given, scaling=32**-0.5)[0].double()

    exact = attended(torch.float64, attention.sdpa_attention_forward)
    kernel = attended(torch.bfloat16, attention.sdpa_attention_forward)
    monkeypatch.delattr(attention, "sdpa_attention_forward")  # here it must not be asked
    found = attended(torch.bfloat16, attention.attend)
    assert found.shape == exact.shape == (3, 40, 6, 32)
    assert (found - exact).abs().max() < 3 * (kernel - exact).abs().max() < 0.05
