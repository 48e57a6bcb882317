"""Simulated quantization: low-bit values in ordinary 16-bit weights.

Two uses. `fake_quantize` rounds a model to a bit width that no kernel of the runtime runs (2 and 3 bits), so that its
accuracy can be measured all the same. `unpack` turns a packed weight-only checkpoint into 16-bit weights with the same
values, for a runtime that cannot run the packed one (vLLM's CPU build has no 4-bit kernel for processors without
AVX-512). Neither is smaller or faster than the model it came from, and both say so in `simulated.json`.

The arithmetic is that of compressed-tensors (asymmetric, symmetric; see `calculate_qparams` there), in torch alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint import copy_companions, copy_config, mark_simulated, quantized_modules
from quantize.headers import read_checkpoint, read_header, weight_files
from quantize.layers import read_model, select
from sqtool.errors import UsageError
from sqtool.files import read_json, write_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"


def fake_quantize(
    model_folder: Path,
    out: Path,
    *,
    bits: int,
    group_size: int = 128,
    symmetric: bool = True,
    targets: Sequence[str] = ("Linear",),
    ignore: Sequence[str] = ("lm_head",),
) -> list[str]:
    """Write `model_folder` to `out` with its linear layers rounded to `bits` bits, in the model's own dtype.

    Returns the names of the layers that were rounded. Raises UsageError when the bits or the group size do not fit.
    """
    from safetensors.torch import load_file, save_file

    if not 2 <= bits <= 8:
        raise UsageError(f"bits must be from 2 to 8, not {bits}")
    model = read_model(model_folder)
    layers = select(model.linears, targets, ignore, where="fake_quantize")
    stacked = next((x for x in layers if x.stacked), None)
    if stacked is not None:
        raise UsageError(
            f"{stacked.name} is part of a tensor that holds all experts, which is not taken apart here",
            remedy="Leave the experts out with ignore, or quantize without simulate.",
        )
    odd = [x for x in layers if x.columns % group_size]
    if odd:
        raise UsageError(
            f"group size {group_size} does not divide the {odd[0].columns} input features of {odd[0].name}"
        )
    names = {f"{layer.name}.weight" for layer in layers}
    out.mkdir(parents=True, exist_ok=True)
    for path in weight_files(model_folder):
        tensors = load_file(path)
        for name in sorted(names & tensors.keys()):
            tensors[name] = round_weights(tensors[name], bits=bits, group_size=group_size, symmetric=symmetric)
        save_file(tensors, out / path.name, metadata={"format": "pt"})
    _carry_over(model_folder, out)
    note = {"bits": bits, "group_size": group_size, "symmetric": symmetric, "layers": len(layers)}
    mark_simulated(out, {"from": "round to nearest", **note})
    return [layer.name for layer in layers]


def round_weights(weight: torch.Tensor, *, bits: int, group_size: int, symmetric: bool) -> torch.Tensor:
    """The nearest values that a `bits`-bit grid per group of `group_size` columns can hold; same shape and dtype.

    Scales are kept in the weight's dtype, as a checkpoint would keep them.
    """
    import torch

    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // group_size, group_size)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if symmetric:
        scale = torch.maximum(low.abs(), high.abs()) / ((most - least) / 2)
        zero = torch.zeros_like(scale)
    else:
        scale = (high - low) / (most - least)
        zero = (least - low / scale).nan_to_num(0.0).clamp(least, most).round()
    scale = torch.where(scale == 0, torch.full_like(scale, torch.finfo(torch.float32).eps), scale)
    scale = scale.to(weight.dtype).float()
    codes = (groups / scale + zero).clamp(least, most).round()
    return ((codes - zero) * scale).reshape(rows, columns).to(weight.dtype)


def unpack(checkpoint: Path, out: Path) -> list[str]:
    """Write a packed weight-only compressed-tensors `checkpoint` to `out` as 16-bit weights with the same values.

    Returns the names of the layers that were unpacked. Raises UsageError when the checkpoint quantizes activations:
    weights alone cannot stand for that.
    """
    from safetensors.torch import load_file, save_file

    config = read_json(checkpoint / "config.json")
    quantization = config.pop("quantization_config", None)
    if quantization is None:
        raise UsageError(f"{checkpoint} is not quantized, there is nothing to unpack")
    for group in quantization.get("config_groups", {}).values():
        if group.get("input_activations") is not None:
            raise UsageError(f"{checkpoint} quantizes activations too: its weights alone do not give its results")
    modules = quantized_modules(read_checkpoint(checkpoint))
    out.mkdir(parents=True, exist_ok=True)
    packed_names = {t.name for parts in modules.values() for t in parts}
    by_file = {path: load_file(path) for path in weight_files(checkpoint)}
    everything = {name: tensor for tensors in by_file.values() for name, tensor in tensors.items()}
    for path, tensors in by_file.items():
        kept = {name: tensor for name, tensor in tensors.items() if name not in packed_names}
        for module in modules:
            if f"{module}.weight_packed" in tensors:
                kept[f"{module}.weight"] = _unpack_layer(module, everything)
        save_file(kept, out / path.name, metadata={"format": "pt"})
    write_json(out / "config.json", config)
    copy_companions(checkpoint, out)
    if (checkpoint / INDEX).is_file():
        _rewrite_index(checkpoint, out)
    mark_simulated(out, {"from": "unpacked checkpoint", "layers": len(modules)})
    return sorted(modules)


def _unpack_layer(module: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    packed, scale = tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"]
    rows, columns = (int(n) for n in tensors[f"{module}.weight_shape"])
    bits = packed.shape[1] * 32 // columns
    codes = unpack_rows(packed, bits, columns)
    groups = scale.shape[1]
    if f"{module}.weight_g_idx" in tensors:
        raise UsageError(f"{module} has its columns reordered (g_idx), an old format that is not read here")
    group = torch.arange(columns) // (columns // groups)
    zero = tensors.get(f"{module}.weight_zero_point")
    if zero is not None:
        zeros = unpack_rows(zero.t().contiguous(), bits, rows).t()
        codes = codes - zeros[:, group]
    # One rounding only: the product in float32, then the checkpoint's own 16-bit type.
    return (codes.float() * scale.float()[:, group]).to(scale.dtype)


def unpack_rows(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """Signed integers [rows, columns] from `packed` int32 [rows, words].

    Format (compressed-tensors `pack-quantized`): element i of a row starts at bit i * bits of the row's words,
    least significant bit first, across word boundaries, stored with 2**(bits-1) added.
    """
    import torch

    words = packed.long() & 0xFFFFFFFF
    words = torch.nn.functional.pad(words, (0, 1))
    start = torch.arange(columns) * bits
    word, shift = start // 32, start % 32
    value = (words[:, word] >> shift) | (words[:, word + 1] << (32 - shift))
    return (value & (2**bits - 1)) - 2 ** (bits - 1)


def _carry_over(model: Path, out: Path) -> None:
    copy_config(model, out)
    copy_companions(model, out)
    if (model / INDEX).is_file():
        shutil.copyfile(model / INDEX, out / INDEX)


def _rewrite_index(checkpoint: Path, out: Path) -> None:
    places: dict[str, Any] = {}
    for path in weight_files(checkpoint):
        places |= dict.fromkeys(read_header(out / path.name), path.name)
    write_json(out / INDEX, {"metadata": {}, "weight_map": dict(sorted(places.items()))})
