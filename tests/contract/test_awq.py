"""Our AWQ finds what llm-compressor's does, and stops where a setting has lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llmcompressor.modifiers.transform.awq import AWQModifier

from quantize.backends import awq as ours
from quantize.run import quantize
from quantize.spec import QuantizeSpec
from sqtool.progress import SILENT
from tests.contract.tiny import make_model, make_tokens


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM"])
def test_the_same_bytes(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model")
    tokens = make_tokens(tmp_path / "tokens.safetensors")
    spec = QuantizeSpec.model_validate({"methods": [{"awq": {"scheme": scheme}}], "batch_size": 1})
    left: list[bool] = []
    real = ours.least_loss

    def watched(*args: Any) -> Any:
        loss, errors = real(*args)
        left.append(loss == inf)
        return loss, errors

    monkeypatch.setattr(ours, "least_loss", watched)

    def made(name: str) -> str:
        out = tmp_path / name
        out.mkdir()
        quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)
        return hashlib.sha256((out / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()

    mine = made("ours")
    assert any(left)
    assert not all(left)
    count = len(left)
    for name in ("_compute_best_scale", "_run_samples", "_compute_loss"):
        monkeypatch.setattr(ours.Awq, name, getattr(AWQModifier, name))
    assert made("theirs") == mine
    assert len(left) == count


def batches(seed: int, sizes: list[int], noise: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [noise * torch.randn(size, 8, generator=generator).bfloat16() for size in sizes]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    noise=st.floats(0.01, 2),
    share=st.one_of(st.floats(0, 2), st.just(inf)),
    data=st.data(),
)
def test_a_loss_is_theirs_or_lost(sizes: list[int], noise: float, share: float, data: Any) -> None:
    wanted, found = batches(0, sizes, 1), batches(1, sizes, noise)
    order = data.draw(st.permutations(range(len(sizes))))
    whole = AWQModifier()._compute_loss(wanted, found)
    least = whole * share
    asked: list[int] = []

    def lazily() -> Iterator[torch.Tensor]:
        for at in order:
            asked.append(at)
            yield found[at]

    loss, errors = ours.least_loss(wanted, lazily(), least, order)
    bar = least * (1 + ours.ROUNDING)
    assert loss == (whole if whole <= bar else inf)
    beyond = next((at for at in range(len(sizes)) if partly(wanted, found, order[: at + 1]) > bar), len(sizes) - 1)
    assert asked == order[: beyond + 1]
    squared = [torch.nn.functional.mse_loss(*pair, reduction="sum").item() for pair in zip(wanted, found, strict=True)]
    assert errors == [squared[at] if at in asked else 0 for at in range(len(sizes))]


def partly(wanted: list[torch.Tensor], found: list[torch.Tensor], known: list[int]) -> float:
    """The loss were there no errors but in the batches `known`."""
    mixed = [found[at] if at in known else wanted[at] for at in range(len(wanted))]
    return float(AWQModifier()._compute_loss(wanted, mixed))


@given(values=st.lists(st.integers(0, 4), min_size=20, max_size=20), duo_scaling=st.sampled_from([True, False, "both"]))
def test_another_order_finds_the_same_setting(values: list[int], duo_scaling: Any) -> None:
    """Losses with many ties, through the comparison that AWQModifier makes of them."""
    theirs = AWQModifier(duo_scaling=duo_scaling)._get_grid_search_params()
    losses = [float(value**2) for value in values]
    wanted = theirs[losses.index(min(losses))]
    mine = ours.Awq(duo_scaling=duo_scaling)
    mine._best = inf, -1
    best, chosen = inf, None
    settings = mine._get_grid_search_params()
    assert sorted(settings) == sorted(theirs)
    assert settings != theirs
    for setting in settings:
        outputs = [torch.full((1, 1), float(values[theirs.index(setting)]))]
        loss = mine._compute_loss([torch.zeros(1, 1)], iter(outputs))
        if loss < best:
            best, chosen = loss, setting
    assert chosen == wanted
    assert best == pytest.approx(min(losses))
