"""A loss mask steers AWQ, in llm-compressor itself; who cannot use one says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT


@pytest.fixture
def masked(tiny_tokens: Path, tmp_path: Path) -> Path:
    """The rows with a mask over the first few tokens of each."""
    kept = load_file(tiny_tokens)
    mask = np.zeros_like(kept["input_ids"])
    mask[:, :5] = 1
    save_file({**kept, "loss_mask": mask}, tmp_path / "masked.safetensors")
    return tmp_path / "masked.safetensors"


def scales(model: Path, tokens: Path, out: Path, methods: list[Any]) -> tuple[dict[str, Any], list[str]]:
    out.mkdir()
    spec = QuantizeSpec.model_validate({"methods": methods})
    summary = quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)
    from safetensors.torch import load_file as load

    kept = load(out / "checkpoint" / "model.safetensors")
    return {name: t for name, t in kept.items() if name.endswith("_scale")}, summary["notes"]


def test_awq_looks_at_the_masked_tokens_only(tiny_model: Path, tiny_tokens: Path, masked: Path, tmp_path: Path) -> None:
    import torch

    awq = [{"awq": {"n_grid": 6}}]
    plain, _ = scales(tiny_model, tiny_tokens, tmp_path / "plain", awq)
    few, notes = scales(tiny_model, masked, tmp_path / "few", awq)
    assert any(not torch.equal(plain[name], few[name]) for name in plain)
    assert not any("every token" in note for note in notes)


def test_gptq_says_that_it_looks_at_all(tiny_model: Path, tiny_tokens: Path, masked: Path, tmp_path: Path) -> None:
    import torch

    plain, _ = scales(tiny_model, tiny_tokens, tmp_path / "plain", ["gptq"])
    few, notes = scales(tiny_model, masked, tmp_path / "few", ["gptq"])
    assert all(torch.equal(plain[name], few[name]) for name in plain)
    assert [note for note in notes if "every token" in note] == [
        "gptq looks at every token: only awq has a loss that can be masked"
    ]
