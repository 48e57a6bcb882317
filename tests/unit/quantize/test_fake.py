from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantize.checkpoint import is_simulated
from quantize.fake import fake_quantize, round_weights, unpack, unpack_rows
from sqtool.errors import UsageError
from tests.contract.tiny import make_model

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_holds_at_most_its_grid_and_is_near(bits: int, symmetric: bool) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    rounded = round_weights(weight, bits=bits, group_size=64, symmetric=symmetric)
    groups = rounded.reshape(16, 4, 64)
    for row in groups.reshape(-1, 64):
        assert len(row.unique()) <= 2**bits
    spread = weight.reshape(16, 4, 64).amax(-1) - weight.reshape(16, 4, 64).amin(-1)
    step = spread.max() / (2**bits - 1)
    assert (rounded - weight).abs().max() <= 1.5 * step


def test_more_bits_are_nearer() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(2))
    errors = [
        float((round_weights(weight, bits=b, group_size=128, symmetric=True) - weight).norm()) for b in (2, 3, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_values_worked_out_by_hand() -> None:
    # 3 bits, symmetric: codes -4..3, scale = 3.5 / 3.5 = 1; 3.5 rounds to 3 at the end of the grid.
    weight = torch.tensor([[3.5, -3.5, 1.4, 0.0, -0.6, 2.5, 1.5, 0.2]])
    got = round_weights(weight, bits=3, group_size=8, symmetric=True)
    assert got.tolist() == [[3.0, -4.0, 1.0, 0.0, -1.0, 2.0, 2.0, 0.0]]
    # 2 bits with a zero point: 0..3 in steps of 1.
    got = round_weights(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), bits=2, group_size=4, symmetric=False)
    assert got.tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_a_group_of_zeros_stays_zero() -> None:
    for symmetric in (True, False):
        got = round_weights(torch.zeros(2, 128), bits=4, group_size=128, symmetric=symmetric)
        assert (got == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_unpacking_undoes_packing_by_hand(bits: int) -> None:
    columns = 96
    values = torch.randint(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (3, columns), generator=torch.Generator().manual_seed(3)
    )
    rows = []
    for row in values.tolist():
        stream = sum((value + 2 ** (bits - 1)) << (bits * place) for place, value in enumerate(row))
        words = [(stream >> (32 * n)) & 0xFFFFFFFF for n in range(-(-columns * bits // 32))]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in words])
    packed = torch.tensor(rows, dtype=torch.int64).to(torch.int32)
    assert torch.equal(unpack_rows(packed, bits, columns), values)


def test_a_simulated_model_keeps_its_files_and_says_what_it_is(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = make_model(tmp_path / "model")
    layers = fake_quantize(model, tmp_path / "out", bits=2)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(layers)
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert "model.embed_tokens" not in changed
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (model / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert is_simulated(tmp_path / "out")
    assert not is_simulated(model)
    assert json.loads((tmp_path / "out" / "simulated.json").read_text())["bits"] == 2


def test_what_cannot_be_simulated_is_said(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    with pytest.raises(UsageError, match="from 2 to 8"):
        fake_quantize(model, tmp_path / "out", bits=1)
    with pytest.raises(UsageError, match="does not divide"):
        fake_quantize(model, tmp_path / "out", bits=3, group_size=96)
    with pytest.raises(UsageError, match="not quantized"):
        unpack(model, tmp_path / "out")
