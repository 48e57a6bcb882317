"""An MTP head goes over to a quantized checkpoint as it was, under each of the names that heads have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quantize.headers import read_checkpoint
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.files import read_json
from sqtool.progress import SILENT
from tests.contract.architectures import make_architecture

HEADS = {
    "layers beyond the last": ("model.layers.{n}.eh_proj.weight", "model.layers.{n}.mlp.up_proj.weight"),
    "mtp_layers": ("model.mtp_layers.0.input_proj.weight", "model.mtp_layers.0.mlp.up_proj.weight"),
    "mtp": ("mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"),
}


def with_head(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Add a head of one layer to a tiny model; its tensors."""
    import torch
    from safetensors.torch import load_file, save_file

    config = read_json(folder / "config.json")
    torch.manual_seed(1)
    head = {name.format(n=config["num_hidden_layers"]): torch.randn(32, 64).bfloat16() for name in names}
    path = folder / "model.safetensors"
    save_file({**load_file(path), **head}, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    return head


def run(model: Path, out: Path) -> dict[str, Any]:
    spec = QuantizeSpec.model_validate({"methods": [{"fp8": {"scheme": "FP8_DYNAMIC"}}]})
    return quantize(spec, model=model, calibration=None, seed=0, out=out, progress=SILENT)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_goes_over_in_16_bits(kind: str, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    model = make_architecture("llama3", tmp_path / "model")
    plain = run(model, tmp_path / "plain")
    head = with_head(model, HEADS[kind])
    made = run(model, tmp_path / "out")
    checkpoint = tmp_path / "out/checkpoint"
    written = read_checkpoint(checkpoint)
    for name, tensor in head.items():
        with safe_open(written[name].file, framework="pt") as file:
            assert torch.equal(file.get_tensor(name), tensor)
    assert any("the MTP head (2 tensors)" in note for note in made["notes"])
    assert made["layers_quantized"] == plain["layers_quantized"]
    assert made["bits_per_weight"] == plain["bits_per_weight"]
    config = read_json(checkpoint / "config.json")
    patterns = [p.removeprefix("re:") for p in config["quantization_config"]["ignore"] if p.startswith("re:")]
    served = [f"model.layers.{config['num_hidden_layers']}.mlp.up_proj", *(n.removesuffix(".weight") for n in head)]
    for name in served:
        assert any(re.match(pattern, name) for pattern in patterns), name
    assert not any(re.match(pattern, "model.layers.1.mlp.up_proj") for pattern in patterns)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert loaded.config.num_nextn_predict_layers == 1


def test_a_model_without_a_head_is_left_alone(tmp_path: Path) -> None:
    made = run(make_architecture("llama3", tmp_path / "model"), tmp_path / "out")
    assert not any("MTP" in note for note in made["notes"])
    assert not list((tmp_path / "out/checkpoint").glob("model_mtp*"))
