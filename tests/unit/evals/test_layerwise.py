"""Errors by layer: found where they are, and not where they only arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from evals.layerwise import BROKEN, FILE, compare_layers, decoder_layers, keep_layers  # noqa: E402


def model(**config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=4, **{**sizes, **config})).eval()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with torch.inference_mode():
        keep_layers(model(), list(range(40)), tmp_path)
    return tmp_path


def errors(candidate: Any, folder: Path) -> list[float]:
    with torch.inference_mode():
        return [row["relative_error"] for row in compare_layers(candidate, folder)]


def test_the_same_model_has_none(kept: Path) -> None:
    assert [name for name, _ in decoder_layers(model())] == [f"model.layers.{i}" for i in range(4)]
    assert errors(model(), kept) == [0.0] * 4


def test_the_damaged_layer_alone_is_named(kept: Path) -> None:
    damaged = model()
    with torch.no_grad():
        damaged.model.layers[2].mlp.down_proj.weight.mul_(1.3)
    found = errors(damaged, kept)
    assert found[2] > 0.01
    assert [found[i] for i in (0, 1, 3)] == [0.0] * 3


def test_scales_moved_into_the_norm_are_no_error(kept: Path) -> None:
    """What AWQ and SmoothQuant do before anything is rounded."""
    moved = model()
    with torch.no_grad():
        layer = moved.model.layers[1]
        layer.input_layernorm.weight[:4] *= 8
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight[:, :4] /= 8
    assert max(errors(moved, kept)) < 1e-5


def test_a_layer_that_gives_nan_is_the_worst(kept: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    assert errors(broken, kept) == [BROKEN, 0.0, 0.0, 0.0]


def test_nothing_kept_and_hooks_gone(kept: Path, tmp_path: Path) -> None:
    again = model()
    (kept / FILE).unlink()
    assert errors(again, kept) == []
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for _, layer in decoder_layers(again))
