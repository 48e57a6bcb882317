"""The AWQ and GPTQ formats: words packed here by the formats' own words come back as the values in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.packed_words import packed_format, unpack_words
from sqtool.errors import EngineError
from sqtool.files import write_json

ROWS, COLUMNS, GROUP = 16, 64, 32


def pack_last(values: Any, bits: int, order: tuple[int, ...]) -> Any:
    """`values` [..., n] to int32 words, the value at order[i] of each word in its bits i * bits."""
    import torch

    many = 32 // bits
    groups = values.long().reshape(*values.shape[:-1], -1, many)
    words = sum(groups[..., place] << (bits * i) for i, place in enumerate(order))
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def checkpoint(folder: Path, method: str, bits: int) -> Any:
    """A checkpoint of one layer, and the weight [rows, columns] that it holds."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (COLUMNS, ROWS), generator=generator)
    zeros = torch.randint(1, 2**bits, (COLUMNS // GROUP, ROWS), generator=generator)
    scales = torch.rand(COLUMNS // GROUP, ROWS, generator=generator).half()
    group = torch.arange(COLUMNS) // GROUP
    tensors = {"a.scales": scales, "norm.weight": torch.ones(4).bfloat16(), "a.bias": torch.zeros(ROWS).half()}
    if method == "awq":
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        tensors |= {"a.qweight": pack_last(codes, bits, order), "a.qzeros": pack_last(zeros, bits, order)}
    else:
        order = tuple(range(32 // bits))
        words = pack_last(codes.t().contiguous(), bits, order).t().contiguous()
        # A group that is not its neighbours': act-order without static groups.
        group = group.flip(0).contiguous()
        tensors |= {"a.qweight": words, "a.qzeros": pack_last(zeros - 1, bits, order), "a.g_idx": group.int()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", {"quantization_config": {"quant_method": method, "bits": bits}})
    return ((codes - zeros[group]).float() * scales.float()[group]).t()


@pytest.mark.parametrize(("method", "bits"), [("awq", 4), ("gptq", 4), ("gptq", 8)])
def test_a_layer_comes_back(method: str, bits: int, tmp_path: Path) -> None:
    import torch

    expected = checkpoint(tmp_path / "m", method, bits)
    assert packed_format(tmp_path / "m") == method
    got = unpack_words(tmp_path / "m", torch.float32)
    assert sorted(got) == ["a.weight", "norm.weight"]
    assert torch.equal(got["a.weight"], expected)


@pytest.mark.parametrize(
    "variant",
    [
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    ],
)
def test_a_variant_that_is_not_known_is_refused(variant: dict[str, Any], tmp_path: Path) -> None:
    import torch

    checkpoint(tmp_path / "m", "gptq", 4)
    write_json(tmp_path / "m" / "config.json", {"quantization_config": variant})
    with pytest.raises(EngineError, match="is not known"):
        unpack_words(tmp_path / "m", torch.float32)
