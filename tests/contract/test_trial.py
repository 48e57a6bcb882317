"""A trial runs the real methods on one and two layers that are the model's own, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from quantize.headers import read_checkpoint
from quantize.preflight.trial import shrink, trial
from quantize.spec import QuantizeSpec
from sqtool.errors import UsageError
from tests.contract.architectures import CONFIGS, make_architecture


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_a_shrunk_model_is_one_that_transformers_runs(architecture: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = make_architecture(architecture, tmp_path / "model")
    shrink(model, tmp_path / "small", layers=1)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.inference_mode():
        assert torch.isfinite(loaded(torch.arange(3, 40)[None]).logits).all()
    layers = {name.split(".")[2] for name in read_checkpoint(tmp_path / "small") if name.startswith("model.layers.")}
    assert layers == {"0"}


def test_the_methods_run(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = QuantizeSpec.model_validate({"methods": ["gptq"], "batch_size": 2})
    got = trial(spec, model=tiny_model, tokens=64 * 100, row_length=64)
    assert (got.few, got.many, got.layers, got.rows) == (2, 4, 2, 100)
    assert min(got.first, got.one_few, got.two_few, got.one_many, got.two_many) > 0
    assert got.seconds >= got.first
    assert "2 layers and 100 rows" in got.to_json()["rule"]
    assert list(tmp_path.glob("sqtool-trial-*")) == []


def test_targets_that_one_layer_does_not_have(tiny_model: Path) -> None:
    spec = QuantizeSpec.model_validate({"methods": [{"rtn": {"targets": ["re:model.layers.1.mlp.*"]}}]})
    with pytest.raises(UsageError, match="trial on one decoder layer failed"):
        trial(spec, model=tiny_model, tokens=64, row_length=64)
