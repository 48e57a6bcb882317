"""Each quantizer that is installed beside llm-compressor makes a checkpoint in the form of every other one, and one
that computes nearly what the model did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.unpacked import unpack
from quantize.backends.environments import state
from quantize.fake import fake_quantize
from quantize.plan import plan
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.files import read_json, write_json
from sqtool.progress import SILENT
from tests.contract.test_methods import logits
from tests.contract.tiny import make_model

CASES: dict[str, dict[str, Any]] = {
    "autoawq-awq": {"backend": "autoawq", "methods": ["awq"]},
    "auto-gptq-gptq": {"backend": "auto-gptq", "methods": ["gptq"]},
    "gptqmodel-gptq": {"backend": "gptqmodel", "methods": [{"gptq": {"group_size": 64}}]},
    "gptqmodel-awq": {"backend": "gptqmodel", "methods": ["awq"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama whose input channels have weights of different size, as a trained model's have."""
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path_factory.mktemp("uneven") / "model")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensor *= channel_sizes(tensor.shape[1])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def channel_sizes(columns: int) -> Any:
    import torch

    return 2.0 ** (torch.arange(columns) % 5 - 2)


def installed(name: str) -> QuantizeSpec:
    spec = QuantizeSpec.model_validate(CASES[name])
    found = state(spec.backend)
    if not found.installed:
        pytest.skip(f"backend {spec.backend} is not installed in {found.folder}")
    return spec


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_a_backend_writes_a_checkpoint_like_the_others(
    name: str, model: Path, tiny_tokens: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = installed(name)
    summary = quantize(spec, model=model, calibration=tiny_tokens, seed=0, out=tmp_path, progress=SILENT)
    assert capfd.readouterr() == ("", ""), "a library wrote to the terminal"
    checkpoint = tmp_path / "checkpoint"
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (checkpoint / file).read_bytes() == (model / file).read_bytes()
    ours, theirs = read_json(model / "config.json"), read_json(checkpoint / "config.json")
    quantization = theirs.pop("quantization_config")
    assert ours == theirs
    assert quantization["quant_method"] == name.rsplit("-", 1)[1]
    assert not quantization.get("desc_act")
    assert sorted(p.suffix for p in checkpoint.iterdir() if p.suffix in (".bin", ".pt", ".safetensors")) == [
        ".safetensors"
    ]
    planned = plan(spec, model=model)
    assert summary["layers_quantized"] == planned["layers_quantized"] == 14
    assert summary["layers_left"] == ["lm_head"]
    # The GPTQ format also names each column's group, in 32 bits, and stores zero points for symmetric weights.
    assert planned["bytes_after"] <= summary["bytes_after"] <= planned["bytes_after"] * 1.1
    assert list(tmp_path.glob(".worker-*")) == []
    unpack(checkpoint, tmp_path / "unpacked")
    fake_quantize(model, tmp_path / "rounded", bits=4, group_size=128, symmetric=False)
    baseline = logits(model)
    distance, plain = ((logits(tmp_path / name) - baseline).norm() for name in ("unpacked", "rounded"))
    # AutoAWQ on a CPU, left alone, is off by several times: its search for scales changes the weights.
    assert distance < 1.1 * plain, f"{distance:.3f}, and rounding to nearest {plain:.3f}"


def test_a_worker_that_fails_says_what_it_said(model: Path, tiny_tokens: Path, tmp_path: Path) -> None:
    from sqtool.errors import InfrastructureError

    spec = installed("gptqmodel-gptq")
    config = read_json(model / "config.json")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    write_json(broken / "config.json", {**config, "model_type": "no_such_model"})
    with pytest.raises(InfrastructureError, match=r"backend gptqmodel failed: .*no_such_model") as caught:
        quantize(spec, model=broken, calibration=tiny_tokens, seed=0, out=tmp_path, progress=SILENT)
    assert "quantize.log" in caught.value.remedy
