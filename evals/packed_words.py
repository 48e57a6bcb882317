"""The AWQ (GEMM) and GPTQ checkpoint formats read by hand: four or eight bits to a word, back to 16-bit weights.

transformers reads neither without a further package, and a processor may have no kernel for them.

AWQ (https://github.com/casper-hansen/AutoAWQ, `WQLinear_GEMM`): `qweight` [columns, rows / 8] packs eight output
features to a word in the order 0 2 4 6 1 3 5 7, `qzeros` [groups, rows / 8] alike, `scales` [groups, rows].
GPTQ (https://github.com/AutoGPTQ/AutoGPTQ, version 1): `qweight` [columns / n, rows] packs n = 32 / bits input features
to a word, `qzeros` [groups, rows / n] output features, stored one too small, `scales` [groups, rows], and `g_idx`
[columns] names the group of each column.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engine_env import model_config
from sqtool.errors import EngineError

if TYPE_CHECKING:
    import torch

FORMATS = ("awq", "gptq")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def packed_format(model: Path) -> str | None:
    """`awq` or `gptq` where the checkpoint is in that format, else None."""
    found = (model_config(model).get("quantization_config") or {}).get("quant_method")
    return found if found in FORMATS else None


def unpack_words(model: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint in folder `model`, its packed layers as `weight` [rows, columns] in `dtype`.

    Raises EngineError for a variant of the format that is not known here.
    """
    from safetensors.torch import load_file

    quantization = model_config(model)["quantization_config"]
    _check(model, quantization)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(model.glob("*.safetensors")):
        tensors |= load_file(path)
    layers = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    for layer in layers:
        parts = {part: tensors.pop(f"{layer}.{part}", None) for part in PARTS}
        read = _awq if quantization["quant_method"] == "awq" else _gptq
        # One rounding: the product in float32, then the model's own type.
        tensors[f"{layer}.weight"] = read(parts, int(quantization["bits"])).t().contiguous().to(dtype)
        bias = tensors.get(f"{layer}.bias")
        if bias is not None and not bias.any():
            del tensors[f"{layer}.bias"]  # AutoGPTQ writes zeros for a layer without one
    return tensors


def _check(model: Path, quantization: dict[str, Any]) -> None:
    method, bits = quantization["quant_method"], quantization.get("bits")
    version = str(quantization.get("version") or "gemm").lower()
    form = str(quantization.get("checkpoint_format") or "gptq").lower()
    if method == "awq" and (bits, version) == (4, "gemm"):
        return
    if method == "gptq" and bits in (4, 8) and form == "gptq":
        return
    raise EngineError(
        f"{model}: this {method} variant ({bits} bits, {version if method == 'awq' else form}) is not known"
    )


def _awq(parts: dict[str, Any], bits: int) -> torch.Tensor:
    import torch

    place = torch.argsort(torch.tensor(AWQ_ORDER))

    def spread(words: torch.Tensor) -> torch.Tensor:
        values = _values(words, bits)[..., place]
        return values.reshape(words.shape[0], -1)

    codes, zeros, scales = spread(parts["qweight"]), spread(parts["qzeros"]), parts["scales"].float()
    group = torch.arange(len(codes)) // (len(codes) // len(scales))
    return (codes - zeros[group]).float() * scales[group]


def _gptq(parts: dict[str, Any], bits: int) -> torch.Tensor:
    import torch

    words, scales = parts["qweight"], parts["scales"].float()
    codes = _values(words, bits).permute(0, 2, 1).reshape(-1, words.shape[1])
    zeros = _values(parts["qzeros"], bits).reshape(len(scales), -1)
    zeros = (zeros + 1) & (2**bits - 1)
    group = parts["g_idx"]
    group = torch.arange(len(codes)) // (len(codes) // len(scales)) if group is None else group.long()
    return (codes - zeros[group]).float() * scales[group]


def _values(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., 32 / bits]: the values in each 32-bit word, lowest bits first."""
    import torch

    shifts = torch.arange(0, 32, bits)
    return (words.long()[..., None] >> shifts) & (2**bits - 1)
