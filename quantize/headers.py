"""Names, types and shapes of a checkpoint's tensors, read from the safetensors headers: no weights, no torch.

Format: 8 bytes little-endian length, then that many bytes of JSON (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.files import read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Larger than any real header by far; a wrong length must not make us read gigabytes.
LONGEST_HEADER = 512 * 1024 * 1024


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
    """Every tensor of one safetensors file. Raises DataError when it is none or is cut short."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise DataError(path, "not a safetensors file, or cut short")
        try:
            header: dict[str, Any] = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            spans = {name: entry["data_offsets"] for name, entry in header.items()}
            found = {
                name: Tensor(name, entry["dtype"], tuple(entry["shape"]), spans[name][1] - spans[name][0], path)
                for name, entry in header.items()
            }
            end = max((last for _, last in spans.values()), default=0)
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(path, "its safetensors header is damaged") from None
    if 8 + length + end != size:
        raise DataError(path, f"cut short: its header promises {8 + length + end} bytes, the file has {size}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, sorted. Raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(folder, "no such folder", remedy="Give the folder of a Hugging Face checkpoint.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(index, f"names {missing[0]}, which is not there", remedy="Fetch the checkpoint again.")
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


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, by name."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors.update(read_header(path))
    return tensors
