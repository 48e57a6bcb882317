"""Calibration computes attention with the fused kernel where transformers does, and sees what it saw with eager
attention."""

from __future__ import annotations

from pathlib import Path
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
