"""Names, types and shapes of a checkpoint's tensors, read from the safetensors headers: no weights, no torch.

Format: 8 bytes little-endian length, then that many bytes of JSON (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.files import read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit (MAX_HEADER_SIZE). A wrong length must not make us read more."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element, by the format's names of types."""
INDEX = "model.safetensors.index.json"
PLAIN_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors")
FETCH = "Fetch the checkpoint again, from a source that you trust."


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint; `dtype` is safetensors' own name (BF16, F32, I32, F8_E4M3, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path

    @property
    def numel(self) -> int:
        return prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file, name -> tensor.

    The header is checked as a whole before anything is believed: names once each, known types, sizes that follow from
    type and shape, data that lies side by side without gap or overlap and ends where the file does. Raises DataError
    when it is no such file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            prefix = handle.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(LONGEST_HEADER, size - 8):
                raise DataError(path, "not a safetensors file, or cut short", remedy=FETCH)
            text = handle.read(length)
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}", remedy=FETCH) from None
    try:
        header: Any = json.loads(text, object_pairs_hook=_once)
    except _DamagedError as error:
        raise DataError(path, f"its safetensors header is damaged: {error}", remedy=FETCH) from None
    except (ValueError, RecursionError):
        raise DataError(path, "its safetensors header is damaged", remedy=FETCH) from None
    if not isinstance(header, dict):
        raise DataError(path, "its safetensors header is damaged: it is no JSON object", remedy=FETCH)
    notes = header.pop("__metadata__", None)
    if notes is not None and not (isinstance(notes, dict) and all(isinstance(v, str) for v in notes.values())):
        raise DataError(path, "its safetensors header is damaged: __metadata__ must hold texts", remedy=FETCH)
    found, spans = {}, []
    for name, entry in header.items():
        try:
            tensor, span = _tensor(path, name, entry)
        except _DamagedError as error:
            message = f"its safetensors header is damaged: tensor {name[:80]!r} {error}"
            raise DataError(path, message, remedy=FETCH) from None
        found[name] = tensor
        spans.append((*span, name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            what = "overlaps another" if first < end else "leaves a gap before it"
            message = f"its safetensors header is damaged: tensor {name[:80]!r} {what}"
            raise DataError(path, message, remedy=FETCH)
        end = last
    if 8 + length + end != size:
        message = f"cut short: its header promises {8 + length + end} bytes, the file has {size}"
        raise DataError(path, message, remedy=FETCH)
    return found


class _DamagedError(Exception):
    """What is wrong in a header."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; readers differ in which of two equal keys they take, so there must be none."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _DamagedError("a name occurs twice")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(path: Path, name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    """One entry of a header and where its data lies (first byte, one past the last)."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _DamagedError("has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _DamagedError(f"has the unknown type {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or not all(map(_whole, shape)):
        raise _DamagedError("has a shape that is no list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)) or offsets[0] > offsets[1]:
        raise _DamagedError("has data_offsets that are no two growing numbers")
    bits = prod(shape) * BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        told = f"has {offsets[1] - offsets[0]} bytes where {dtype} and its shape need {str(bits // 8)[:30]}"
        raise _DamagedError(told)
    return Tensor(name, dtype, tuple(shape), offsets[1] - offsets[0], path), (offsets[0], offsets[1])


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, sorted. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(folder, "no such folder", remedy="Give the folder of a Hugging Face checkpoint.")
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(read_index(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(index, f"names {missing[0]}, which is not there", remedy=FETCH)
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise DataError(
            folder,
            "has pickled weights, which can run code when they are read",
            remedy="Convert it where that is safe: transformers' save_pretrained writes safetensors.",
        )
    raise DataError(folder, "has no *.safetensors file", remedy="Give the folder of a Hugging Face checkpoint.")


def read_index(path: Path) -> dict[str, str]:
    """The weight_map (tensor -> file beside it) of an index. Raises DataError for one that is none, and for a file
    that is not a plain `*.safetensors` name: an index must not lead out of its folder."""
    value = read_json(path)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places:
        raise DataError(path, "expected a mapping of tensors to files", field="weight_map", remedy=FETCH)
    for tensor, name in places.items():
        if not isinstance(name, str) or not PLAIN_SHARD.fullmatch(name):
            shown = str(name)[:80]
            message = f"{tensor[:80]!r} is in {shown!r}, which is no *.safetensors file of this folder"
            raise DataError(path, message, field="weight_map", remedy=FETCH)
    return places


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, by name. Raises DataError as `read_header` does, for a tensor that two files
    have, and for an index that disagrees with the files."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            if name in tensors:
                message = f"tensor {name[:80]!r} is in {tensors[name].file.name} too"
                raise DataError(path, message, remedy=FETCH)
            tensors[name] = tensor
    index = folder / INDEX
    for name, file in read_index(index).items() if index.is_file() else ():
        if name not in tensors or tensors[name].file.name != file:
            raise DataError(index, f"{name[:80]!r} is not in {file}", field="weight_map", remedy=FETCH)
    return tensors
