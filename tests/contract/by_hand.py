"""Reads every format that we write from its description alone, in NumPy: no compressed-tensors, no torch.

Formats: https://docs.vllm.ai/projects/llm-compressor/en/latest/guides/compression_schemes/; E4M3 and E2M1 are the OCP
8-bit floating point and microscaling formats.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
PLAIN = {"F32": np.float32, "I32": np.int32, "I64": np.int64, "I8": np.int8, "U8": np.uint8}


def read(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file; FP8 and bfloat16 become float32."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        raw, dtype = data[8 + length + first : 8 + length + last], entry["dtype"]
        if dtype == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif dtype == "F8_E4M3":
            values = e4m3(np.frombuffer(raw, np.uint8))
        else:
            values = np.frombuffer(raw, PLAIN[dtype])
        found[name] = values.reshape(entry["shape"])
    return found


def e4m3(codes: Array) -> Array:
    """Sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinities, all ones is NaN."""
    exponent, mantissa = ((codes >> 3) & 15).astype(np.int32), (codes & 7).astype(np.float32)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    size = np.where((codes & 127) == 127, np.nan, size)
    return np.where(codes & 128, -size, size).astype(np.float32)


def bits(words: Array, width: int, count: int) -> Array:
    """`count` integers of `width` bits from each row of 32-bit words, lowest bit first, stored with an offset."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    taken = stream[:, : width * count].reshape(len(words), count, width).astype(np.int64)
    return (taken << np.arange(width)).sum(-1) - 2 ** (width - 1)


def weights(tensors: Mapping[str, Array], layer: str, scheme: Mapping[str, Any]) -> Array:
    """The layer's weights as float32 [rows, columns]; `scheme` is its `weights` in config.json."""
    scale, width = tensors[f"{layer}.weight_scale"], int(scheme["num_bits"])
    if f"{layer}.weight" in tensors:
        stored = tensors[f"{layer}.weight"].astype(np.float32)
        if scheme["strategy"] == "block":
            rows, columns = stored.shape
            height, breadth = scheme["block_structure"]
            scale = scale.repeat(height, 0)[:rows].repeat(breadth, 1)[:, :columns]
        return np.asarray(stored * scale, np.float32)
    packed = tensors[f"{layer}.weight_packed"]
    if scheme["type"] == "float":
        nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
        codes = np.where(nibbles & 8, -E2M1[nibbles & 7], E2M1[nibbles & 7])
        if f"{layer}.weight_global_scale" in tensors:
            scale = scale / tensors[f"{layer}.weight_global_scale"]
        else:
            scale = np.float32(2) ** (scale.astype(np.float32) - 127)
    else:
        rows, columns = (int(n) for n in tensors[f"{layer}.weight_shape"])
        codes = bits(packed, width, columns)
        if f"{layer}.weight_zero_point" in tensors:
            zeros = bits(tensors[f"{layer}.weight_zero_point"].T, width, rows).T
            codes = codes - zeros.repeat(columns // zeros.shape[1], 1)
    return np.asarray(codes.astype(np.float32) * scale.repeat(codes.shape[1] // scale.shape[1], 1), np.float32)
