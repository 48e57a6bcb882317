"""Model folders as an attacker makes them: refused before any library opens them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from quantize.headers import INDEX, read_checkpoint, read_header
from quantize.vetting import LARGEST_CONFIG, check_model
from sqtool.errors import DataError
from sqtool.pipeline import find_model
from tests.security.conftest import PLAIN, safetensors

U8 = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
HEADERS: dict[str, Any] = {
    "huge length": safetensors(PLAIN, length=2**63),
    "length beyond the file": safetensors(PLAIN, length=10_000),
    "length of nothing": safetensors(PLAIN, length=0),
    "no length": b"\x01\x02",
    "empty": b"",
    "not JSON": safetensors(b"{{{{"),
    "nested without end": safetensors(b'{"a":' * 100_000),
    "a list": safetensors([1, 2]),
    "overlapping": safetensors({"a": U8, "b": {**U8, "data_offsets": [2, 6]}}, b"\0" * 6),
    "the same bytes twice": safetensors({"a": U8, "b": U8}),
    "a gap": safetensors({"a": U8, "b": {**U8, "data_offsets": [8, 12]}}, b"\0" * 12),
    "not from the beginning": safetensors({"a": {**U8, "data_offsets": [4, 8]}}, b"\0" * 8),
    "backwards": safetensors({"a": {**U8, "data_offsets": [4, 0]}}),
    "negative": safetensors({"a": {**U8, "data_offsets": [-4, 0]}}),
    "negative shape": safetensors({"a": {**U8, "shape": [-2, -2]}}),
    "shape says more": safetensors({"a": {**U8, "shape": [4000]}}),
    "shape overflows": safetensors({"a": {**U8, "shape": [2**62, 2**62]}}),
    "shape of truth values": safetensors({"a": {**U8, "shape": [True, True, True, True]}}),
    "type says more": safetensors({"a": {**U8, "dtype": "F64"}}),
    "unknown type": safetensors({"a": {**U8, "dtype": "PICKLE"}}),
    "type is a list": safetensors({"a": {**U8, "dtype": ["U8"]}}),
    "three offsets": safetensors({"a": {**U8, "data_offsets": [0, 2, 4]}}),
    "a further key": safetensors({"a": {**U8, "code": "import os"}}),
    "a tensor twice": safetensors(b'{"a":' + json.dumps(U8).encode() + b',"a":' + json.dumps(U8).encode() + b"}"),
    "metadata that is none": safetensors({"__metadata__": {"a": [0]}, **PLAIN}),
    "cut short": safetensors(PLAIN)[:-1],
    "something behind": safetensors(PLAIN) + b"\0",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies(name: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(DataError) as caught:
        find_model(model, model.parent)
    assert "model.safetensors" in caught.value.message
    assert caught.value.remedy


def test_what_passes_is_what_the_library_reads(model: Path) -> None:
    path = model / "model.safetensors"
    header = {"__metadata__": {"format": "pt"}, "e": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}, **PLAIN}
    path.write_bytes(safetensors(header))
    assert {name: t.shape for name, t in read_header(path).items()} == {"e": (0, 3), "a": (4,)}
    with safe_open(path, framework="np") as opened:
        assert set(opened.keys()) == {"e", "a"}


def test_a_tensor_in_two_files_and_an_index_that_disagrees(model: Path) -> None:
    (model / "more.safetensors").write_bytes(safetensors(PLAIN))
    with pytest.raises(DataError, match=r"is in model\.safetensors too"):
        read_checkpoint(model)
    (model / INDEX).write_text(json.dumps({"weight_map": {"b": "more.safetensors"}}))
    with pytest.raises(DataError, match=r"'b' is not in more\.safetensors"):
        read_checkpoint(model)


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("owned"),)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused_and_never_opened(name: str, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match="pickled weights, which can run code") as caught:
        find_model(model, tmp_path)
    assert "safetensors" in caught.value.remedy
    assert not Path("owned").exists()


def test_an_adapter_is_refused(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="adapter"):
        check_model(model)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a":' * 50_000, "\x00", "9" * 9000, '"x"'])
def test_a_config_that_is_none(text: str, model: Path) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(DataError) as caught:
        find_model(model, model.parent)
    assert "config.json" in caught.value.message
    assert caught.value.remedy


def test_a_config_of_endless_length(model: Path) -> None:
    with (model / "config.json").open("wb") as handle:
        handle.truncate(LARGEST_CONFIG + 1)
    with pytest.raises(DataError, match="larger than 16 MiB"):
        check_model(model)
