"""Each quantizer that is installed beside llm-compressor makes a checkpoint in the form of every other one, and one that
computes nearly what the model did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.unpacked import unpack
from quantize.backends.environments import state
from quantize.plan import plan
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.files import read_json, write_json
from sqtool.progress import SILENT
from tests.contract.test_methods import logits

CASES: dict[str, dict[str, Any]] = {
    "autoawq-awq": {"backend": "autoawq", "methods": ["awq"]},
    "auto-gptq-gptq": {"backend": "auto-gptq", "methods": ["gptq"]},
    "gptqmodel-gptq": {"backend": "gptqmodel", "methods": [{"gptq": {"group_size": 64}}]},
    "gptqmodel-awq": {"backend": "gptqmodel", "methods": ["awq"]},
}


def installed(name: str) -> QuantizeSpec:
    spec = QuantizeSpec.model_validate(CASES[name])
    found = state(spec.backend)
    if not found.installed:
        pytest.skip(f"backend {spec.backend} is not installed in {found.folder}")
    return spec


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_a_backend_writes_a_checkpoint_like_the_others(
    name: str, tiny_model: Path, tiny_tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    spec = installed(name)
    summary = quantize(spec, model=tiny_model, calibration=tiny_tokens, seed=0, out=tmp_path, progress=SILENT)
    assert capfd.readouterr() == ("", ""), "a library wrote to the terminal"
    checkpoint = tmp_path / "checkpoint"
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (checkpoint / file).read_bytes() == (tiny_model / file).read_bytes()
    ours, theirs = read_json(tiny_model / "config.json"), read_json(checkpoint / "config.json")
    quantization = theirs.pop("quantization_config")
    assert ours == theirs
    assert quantization["quant_method"] == name.rsplit("-", 1)[1]
    assert not quantization.get("desc_act")
    assert sorted(p.suffix for p in checkpoint.iterdir() if p.suffix in (".bin", ".pt", ".safetensors")) == [
        ".safetensors"
    ]
    planned = plan(spec, model=tiny_model)
    assert summary["layers_quantized"] == planned["layers_quantized"] == 14
    assert summary["layers_left"] == ["lm_head"]
    # The GPTQ format also names each column's group, in 32 bits, and stores zero points for symmetric weights.
    assert planned["bytes_after"] <= summary["bytes_after"] <= planned["bytes_after"] * 1.1
    assert list(tmp_path.glob(".worker-*")) == []
    unpack(checkpoint, tmp_path / "unpacked")
    baseline, got = logits(tiny_model), logits(tmp_path / "unpacked")
    near = torch.nn.functional.cosine_similarity(baseline, got, dim=-1).mean()
    assert near > 0.9, f"the quantized model computes something else: {near}"


def test_a_worker_that_fails_says_what_it_said(tiny_model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    from sqtool.errors import InfrastructureError

    spec = installed("gptqmodel-gptq")
    config = read_json(tiny_model / "config.json")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    write_json(broken / "config.json", {**config, "model_type": "no_such_model"})
    with pytest.raises(InfrastructureError, match=r"backend gptqmodel failed: .*no_such_model") as caught:
        quantize(spec, model=broken, calibration=tiny_tokens, seed=0, out=tmp_path, progress=SILENT)
    assert "quantize.log" in caught.value.remedy
