"""Our AWQ finds what llm-compressor's does, and stops where a setting has lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llmcompressor.modifiers.transform.awq import AWQModifier

from quantize.backends import awq as ours
from quantize.backends.search import Search, least_loss
from quantize.backends.sieve import ADDING, STRIP, sieve
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
    real = Search.loss

    def watched(*args: Any) -> float:
        loss = real(*args)
        left.append(loss == inf)
        return loss

    monkeypatch.setattr(Search, "loss", watched)

    def made(name: str) -> str:
        out = tmp_path / name
        out.mkdir()
        quantize(spec, model=model, calibration=tokens, seed=0, out=out, progress=SILENT)
        return hashlib.sha256((out / "checkpoint" / "model.safetensors").read_bytes()).hexdigest()

    passes: list[torch.nn.Module] = []
    whole = AWQModifier._run_samples

    def counted(self: AWQModifier, module: torch.nn.Module) -> list[torch.Tensor]:
        passes.append(module)
        return whole(self, module)

    monkeypatch.setattr(AWQModifier, "_run_samples", counted)
    mine = made("ours")
    assert not passes  # what calibration saw is not made again
    assert any(left)
    assert not all(left)
    count = len(left)
    for name in ("_compute_best_scale", "_run_samples", "_compute_loss"):
        monkeypatch.setattr(ours.Awq, name, getattr(AWQModifier, name))
    assert made("theirs") == mine
    assert passes
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

    loss, errors = least_loss(wanted, lazily(), least, order)
    bar = least * (1 + ADDING)
    assert loss == (whole if whole <= bar else inf)
    beyond = next((at for at in range(len(sizes)) if partly(wanted, found, order[: at + 1]) > bar), len(sizes) - 1)
    assert asked == order[: beyond + 1]
    squared = [torch.nn.functional.mse_loss(*pair, reduction="sum").item() for pair in zip(wanted, found, strict=True)]
    assert errors == [squared[at] if at in asked else 0 for at in range(len(sizes))]


def partly(wanted: list[torch.Tensor], found: list[torch.Tensor], known: list[int]) -> float:
    """The loss were there no errors but in the batches `known`."""
    mixed = [found[at] if at in known else wanted[at] for at in range(len(wanted))]
    return float(AWQModifier()._compute_loss(wanted, mixed))


class Cache(list[dict[str, Any]]):
    """As much of an IntermediatesCache as a search asks for."""

    def fetch(self, index: int) -> dict[str, Any]:
        return self[index]


@given(values=st.lists(st.integers(0, 4), min_size=20, max_size=20), duo_scaling=st.sampled_from([True, False, "both"]))
def test_another_order_finds_the_same_setting(values: list[int], duo_scaling: Any) -> None:
    """Losses with many ties, through the comparison that AWQModifier makes of them."""
    theirs = AWQModifier(duo_scaling=duo_scaling)._get_grid_search_params()
    losses = [float(value**2) for value in values]
    wanted = theirs[losses.index(min(losses))]
    search = Search(Cache([{}]))
    settings = search.arranged(theirs)
    assert sorted(settings) == sorted(theirs)
    assert settings != theirs
    best, chosen = inf, None
    for setting in settings:
        outputs = torch.full((1, 1), float(values[theirs.index(setting)]))
        module: Any = partial(torch.clone, outputs)
        loss = search.loss(module, [torch.zeros(1, 1)])
        if loss < best:
            best, chosen = loss, setting
    assert chosen == wanted
    assert best == pytest.approx(min(losses))


@given(
    seed=st.integers(0, 99),
    noises=st.lists(st.floats(0.005, 0.4), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_a_sieve_finds_the_same_setting(seed: int, noises: list[float], dtype: torch.dtype) -> None:
    """Of settings of a linear layer, on tokens a few of which have most of the error."""
    torch.manual_seed(seed)
    inputs = [torch.randn(2, 700, 8, dtype=dtype) * (1 + 9 * (torch.rand(2, 700, 1) > 0.95)) for _ in range(3)]
    inputs = [batch.to(dtype) for batch in inputs]
    layer = torch.nn.Linear(8, 4, bias=False, dtype=dtype)
    right = layer.weight.detach().clone()
    wanted = [layer(batch).detach() for batch in inputs]
    search = Search(Cache({"input": batch} for batch in inputs))
    search.arranged([(0.0, True)] * len(noises))
    best, chosen, losses = inf, None, []
    for at, noise in enumerate(noises):
        with torch.no_grad():
            layer.weight.copy_(right + noise * torch.randn(4, 8))
            losses.append(AWQModifier()._compute_loss(wanted, [layer(batch) for batch in inputs]))
            loss = search.loss(layer, wanted)
        assert loss in (losses[-1], inf)
        if loss < best:
            best, chosen = loss, at
    assert search.sieve is not None
    assert chosen == losses.index(min(losses))


@given(seed=st.integers(0, 999), dtype=st.sampled_from([torch.bfloat16, torch.float32]))
def test_only_what_is_certain_has_lost(seed: int, dtype: torch.dtype) -> None:
    """Sums by strips of sorted tokens are rounded otherwise than AWQModifier's by batches."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(8, 4, bias=False, dtype=dtype)
    inputs = [(torch.randn(3, 100, 8) * torch.rand(3, 100, 1) ** 3).to(dtype) for _ in range(8)]
    with torch.no_grad(), patch("quantize.backends.sieve.STRIP", 64):
        made = [layer(batch) for batch in inputs]
        wanted = [(batch * (1 + 0.1 * torch.randn(batch.shape))).to(dtype) for batch in made]
        found = sieve(layer, [{"input": batch} for batch in inputs], wanted, made)
        assert found is not None
        loss = AWQModifier()._compute_loss(wanted, made)
        assert found.outputs(layer, loss) is not None
        assert found.outputs(layer, 0.9 * loss) is None


def test_on_a_device_one_batch_is_kept_and_the_heaviest_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize.backends.search.on_host", lambda wanted: False)
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4, bias=False)
    inputs = [size * torch.randn(1, 5, 8) for size in (1.0, 2.0, 9.0)]
    asked: list[int] = []
    layer.register_forward_pre_hook(
        lambda _, given: asked.append(next(at for at, one in enumerate(inputs) if one is given[0]))
    )

    class Named(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = layer(hidden)
            return made

    right = layer.weight.detach().clone()
    with torch.no_grad():
        wanted = [one @ right.T for one in inputs]
        search = Search(Cache({"hidden": one} for one in inputs))
        search.arranged([(0.0, True)] * 3)
        losses = []
        for noise in (0.1, 0.5, 0.01):
            layer.weight.copy_(right + noise)
            losses.append(search.loss(Named(), wanted))
    assert search.sieve is None
    assert asked == [0, 1, 2, 2, 2, 1, 0]
    assert losses[1] == inf
    assert losses[2] < losses[0] < inf


def test_a_sieve_stops_early() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4, bias=False)
    inputs = [torch.randn(4, STRIP, 8)]
    inputs[0][1] *= 100
    seen: list[int] = []
    with torch.no_grad():
        wanted, made = [torch.zeros(4, STRIP, 4)], [layer(inputs[0])]
        found = sieve(layer, [{"input": inputs[0]}], wanted, made)
        assert found is not None
        layer.register_forward_hook(lambda *_: seen.append(1))
        loss = AWQModifier()._compute_loss(wanted, made)
        assert found.outputs(layer, 0.5 * loss) is None
        assert len(seen) == 1
        outputs = found.outputs(layer, loss)
    assert outputs is not None
    assert torch.equal(outputs[0], made[0])


class Mixing(torch.nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.cumsum(1)


@pytest.mark.parametrize(
    ("module", "others", "dtype"),
    [
        (Mixing(), {}, torch.float32),
        (torch.nn.Identity(), {"mask": None}, torch.float32),
        (torch.nn.Identity(), {}, torch.float16),
    ],
)
def test_no_sieve_where_tokens_are_not_alone(module: Any, others: dict[str, Any], dtype: torch.dtype) -> None:
    inputs = torch.randn(2, 8, 4).to(dtype)
    name = "hidden" if isinstance(module, Mixing) else "input"
    batches = [{name: inputs, **others}]
    assert sieve(module, batches, [torch.zeros(2, 8, 4, dtype=dtype)], [module(inputs)]) is None


def test_what_calibration_saw_is_taken_while_it_is_true() -> None:
    modifier, layer = ours.Awq(), torch.nn.Linear(2, 2)
    block = torch.nn.Sequential(layer)
    modifier._parent_args_cache[block] = Cache([{"input": torch.ones(1, 2)}])
    made = torch.zeros(1, 2)

    def taken() -> bool:
        (outputs,) = modifier._run_samples(block)
        assert outputs.shape == made.shape
        return outputs is made

    modifier._see(block, None, (made, None))
    assert taken()
    assert not taken()  # once
    modifier._see(block, None, made)
    made += 1
    assert not taken()
    for _ in range(2):  # more than there are inputs
        modifier._see(block, None, made)
    assert not taken()
    modifier._see(block, None, made)
    modifier._changed.add(layer)
    assert not taken()
