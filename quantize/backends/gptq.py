"""llm-compressor's GPTQ with the same arithmetic in less time. Import it only inside functions.

Two things cost it more than they must. Every layer multiplies its inputs for itself and in float32, though q, k and v
have the same inputs, and tensor cores (and a CPU's bf16 instructions) compute the products of 16-bit numbers without
rounding and add them up in float32. And without a GPU each column of a weight is a strided one, which is gathered from
all over the memory for each of a dozen small operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationStrategy
from compressed_tensors.quantization.quant_args import round_to_quantized_type_args
from compressed_tensors.quantization.utils import calculate_range
from compressed_tensors.utils import get_execution_device
from compressed_tensors.utils.impl_backend import ImplBackend
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.gptq.helpers import column_scale_window, make_empty_hessian
from pydantic import PrivateAttr

EXACT = {torch.bfloat16: "medium", torch.float16: "high"}
"""By the dtype of two matrices: the precision of torch.set_float32_matmul_precision that rounds none of their products.
`high` may take factors as TF32, whose 10 bits hold a float16's, `medium` as bfloat16 too. Sums are float32's on a CPU;
a tensor core cuts each rather than rounding it: 1.3e-5 of an entry after 8,192 tokens, where damping adds 1e-2."""

STRIP = 128
"""Features of which a CPU makes the products at once."""

AT_ONCE = 2
"""Weights of one shape that are rounded together without a GPU, where llm-compressor's `auto` takes one by one."""

_by_columns: ContextVar[bool] = ContextVar("by_columns", default=False)


class Gptq(GPTQModifier):
    """GPTQModifier that multiplies inputs once for all layers that have them in common."""

    _inputs: Any = PrivateAttr(default=None)
    _version: int = PrivateAttr(default=0)
    _product: Any = PrivateAttr(default=None)

    def calibrate_module(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        if not isinstance(module, torch.nn.Linear):
            super().calibrate_module(module, args, _output)
            return
        device = get_execution_device(module)
        if module not in self._num_samples:
            self._hessians[module] = make_empty_hessian(module, device=device)
            self._num_samples[module] = torch.zeros((), device=device)
        inputs = args[0]
        if inputs is not self._inputs or inputs._version != self._version:
            self._inputs, self._version, self._product = inputs, inputs._version, None
            self._product = gram(inputs.to(device))
        self._hessians[module] += self._product
        self._num_samples[module] += inputs.shape[0] if inputs.dim() > 2 else 1

    def compress_module_list(self, module_list: list[torch.nn.Module]) -> None:
        self._inputs = self._product = None
        at_once: Any = self.batched_quantization  # type: ignore[has-type]
        if at_once == "auto" and not torch.accelerator.is_available():
            self.batched_quantization = AT_ONCE
        with by_columns():
            super().compress_module_list(module_list)


def gram(inputs: torch.Tensor) -> torch.Tensor:
    """Twice X'X, in float32, of `inputs` X (..., features): what GPTQ's Hessian adds up."""
    rows = inputs.reshape(-1, inputs.shape[-1]).float()
    with _multiplying(inputs.dtype):
        if rows.device.type != "cpu":
            return torch.mm(rows.t(), rows).mul_(2)
        product = rows.new_empty(rows.shape[1], rows.shape[1])
        for start in range(0, rows.shape[1], STRIP):
            # What is right of the diagonal is the mirror image of what is below.
            strip = slice(start, start + STRIP)
            below = product[strip, : strip.stop]
            torch.mm(rows[:, strip].t(), rows[:, : strip.stop], out=below)
            product[:start, strip] = below[:, :start].t()
        return product.mul_(2)


@contextmanager
def _multiplying(dtype: torch.dtype) -> Iterator[None]:
    """Inside, float32 matrices whose values are of `dtype` are multiplied in the fastest way that is exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(EXACT.get(dtype, before))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def by_columns() -> Iterator[None]:
    """Inside, llm-compressor's GPTQ calls `gptq_block_update_by_columns` for weights in host memory."""
    token = _by_columns.set(True)
    try:
        yield
    finally:
        _by_columns.reset(token)


def _applies(work: torch.Tensor, *_: Any, **__: Any) -> bool:
    return _by_columns.get() and work.device.type == "cpu"


@ImplBackend.register("gptq_block_update", _applies, 0)
def gptq_block_update_by_columns(
    work: torch.Tensor,
    inverse: torch.Tensor,
    quantized: torch.Tensor,
    errors: torch.Tensor,
    losses: torch.Tensor,
    *,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    global_scale: torch.Tensor | None,
    g_idx: torch.Tensor | None,
    quant_args: Any,
    i1: int,
) -> None:
    """llm-compressor's `gptq_block_update` with the same values, on columns that are contiguous.

    `work`, `quantized`, `errors` and `losses` are (layers, rows, columns), `inverse` (layers, columns, columns).
    """
    rows, width = work.shape[1:]
    scales, zeros = column_scale_window(
        scale, zero_point, global_scale, g_idx, quant_args, num_rows=rows, i1=i1, i2=i1 + width
    )
    by_column = copy(quant_args)
    by_column.strategy = QuantizationStrategy.CHANNEL
    low, high = calculate_range(by_column, work.device)

    def columns_first(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(2, 0, 1).contiguous()

    left, steps = columns_first(work), columns_first(scales)
    # Symmetric schemes have zeros for zero points.
    shifts = columns_first(zeros) if zeros is not None and zeros.any() else None
    factors = inverse.permute(1, 2, 0)[..., None].contiguous()
    rounded, lost = torch.empty_like(left), torch.empty_like(left)
    by_place = zip(*(tensor.unbind() for tensor in (left, steps, rounded, lost)), strict=True)
    for column, (weights, step, near, error) in enumerate(by_place):
        code = weights / step
        if shifts is not None:
            code += shifts[column].to(code.dtype)
        code = round_to_quantized_type_args(code, by_column, low, high).to(step.dtype)
        if shifts is not None:
            code = code - shifts[column].to(step.dtype)
        torch.mul(code, step, out=near)
        torch.sub(weights, near, out=error)
        error /= factors[column, column]
        left[column + 1 :] -= factors[column, column + 1 :] * error
    quantized.copy_(rounded.permute(1, 2, 0))
    errors.copy_(lost.permute(1, 2, 0))
    torch.square(errors, out=losses)
