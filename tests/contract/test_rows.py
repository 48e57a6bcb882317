"""Packed conversations do not see each other, and where a model lets them, it is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.tiny import make_tokens


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model)


def test_conversations_of_a_row_stand_alone(model: Any, tmp_path: Path) -> None:
    import torch

    from quantize.backends.rows import isolates, read_rows

    tokens = make_tokens(tmp_path / "tokens.safetensors")
    assert isolates(model, model.model.layers[0], tokens)
    row = read_rows(model, tokens)[0]
    with torch.inference_mode():
        packed = model(**{name: values[None] for name, values in row.items()}, use_cache=False).logits[0, 24:48]
        alone = model(input_ids=row["input_ids"][None, 24:48]).logits[0]
    torch.testing.assert_close(packed, alone, rtol=0.05, atol=0.05)


def test_a_model_that_mixes_them_is_noticed(model: Any, tmp_path: Path) -> None:
    from quantize.backends.rows import isolates, read_rows

    class Mixes(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    tokens = make_tokens(tmp_path / "tokens.safetensors")
    model.__class__ = Mixes
    assert "position_ids" not in read_rows(model, tokens)[0]
    assert not isolates(model, model.model.layers[0], tokens)


def test_a_model_whose_mask_ignores_positions_is_noticed(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.masking_utils

    from quantize.backends.rows import isolates

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda _positions: None)
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    assert not isolates(model, model.model.layers[0], tokens)


@pytest.mark.parametrize(("free", "device"), [(3_600_000, "cpu"), (4_400_000, "cuda")])
def test_hidden_states_stay_on_a_gpu_with_room(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, device: str
) -> None:
    """They may take a quarter of what is free, here in millionths of what they take."""
    import torch
    from safetensors.torch import load_file

    from quantize.backends.rows import states_device

    tokens = make_tokens(tmp_path / "tokens.safetensors")
    assert states_device(model, tokens, 4) == "cpu", "there is none"
    rows, length = load_file(tokens)["input_ids"].shape
    model = model.float()
    head = model.config.hidden_size // model.config.num_attention_heads
    needed = rows * length * (2 * model.config.hidden_size + length + 2 * head) * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (needed * free // 1_000_000, 0))
    assert states_device(model, tokens, 4) == device
