"""The layers as the runtime sees them: merged with their siblings, cut over GPUs, each with its kernel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantize.kernels import ORDER, Kernel, Runtime, Shape, kernel
from quantize.layers import Linear
from quantize.schemes import Scheme
from sqtool.errors import UsageError

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
"""What vLLM merges into one matrix (`packed_modules_mapping` of its models)."""
ROW_PARALLEL = frozenset({"o_proj", "down_proj", "out_proj", "wo", "w2", "c_proj", "dense", "dense_4h_to_h", "fc2"})
"""Layers whose input features are divided over GPUs; the others divide their output features."""
EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Served:
    """How many layers get one kernel, with the first of them as an example."""

    kernel: Kernel
    layers: int
    example: str

    def to_json(self) -> dict[str, object]:
        """Keys: kernel, status, reason, layers, example."""
        found = self.kernel
        return {
            "kernel": found.name,
            "status": found.status,
            "reason": found.reason,
            "layers": self.layers,
            "example": self.example,
        }


def serve(quantized: Mapping[str, Scheme], linears: Mapping[str, Linear], runtime: Runtime) -> list[Served]:
    """The kernels of all quantized layers, worst first; a merged layer counts once for each of its parts.

    Raises UsageError when parts of one merged layer are not quantized alike: vLLM refuses such a checkpoint, or loads
    it with the first part's scheme for all (`should_ignore_layer` and `_match_fused_layer` in its compressed-tensors).
    """
    counts: Counter[Kernel] = Counter()
    examples: dict[Kernel, str] = {}
    for name, scheme in quantized.items():
        if EXPERT.search(name):
            found = Kernel("unknown", reason="experts run in vLLM's fused MoE kernels, which this table does not cover")
        else:
            merged = siblings(name, linears)
            _check_alike(merged, quantized)
            found = kernel(scheme, _shape([linears[x] for x in merged], runtime, name), runtime)
        counts[found] += 1
        examples.setdefault(found, name)
    found_all = [Served(found, count, examples[found]) for found, count in counts.items()]
    return sorted(found_all, key=lambda s: ORDER.index(s.kernel.status))


def siblings(name: str, linears: Mapping[str, Linear]) -> list[str]:
    """The layers that vLLM merges with `name`, itself among them."""
    parent, _, last = name.rpartition(".")
    for parts in FUSED.values():
        if last in parts:
            found = [f"{parent}.{part}" for part in parts]
            if all(x in linears for x in found):
                return found
    return [name]


def _check_alike(merged: Sequence[str], quantized: Mapping[str, Scheme]) -> None:
    first, *others = merged
    for other in others:
        if quantized.get(other) != quantized.get(first):
            raise UsageError(
                f"{first} and {other} are quantized differently, and vLLM merges them into one layer",
                remedy="Give them the same method and scheme, or ignore both.",
            )


def _shape(layers: Sequence[Linear], runtime: Runtime, name: str) -> Shape:
    rows, columns, parts = sum(x.rows for x in layers), layers[0].columns, runtime.tensor_parallel
    by_columns = name.rpartition(".")[2] in ROW_PARALLEL
    divided = columns if by_columns else rows
    if divided % parts:
        raise UsageError(
            f"{name}: {divided} features cannot be divided over engine.tensor_parallel_size {parts} GPUs",
            remedy="Use a size that divides them.",
        )
    if by_columns:
        return Shape(rows, columns // parts)
    return Shape(rows // parts, columns, tuple(x.rows // parts for x in layers) if len(layers) > 1 else ())
