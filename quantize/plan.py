"""What quantizing would do: layers, bytes, seconds. Reads config.json and safetensors headers only, never torch.

The estimate of time is arithmetic over a measured speed: operations that the methods need for the calibration tokens,
divided by a share of what a NumPy matrix product reaches on this machine in a tenth of a second, plus a fixed start. It
says how long roughly, not how long exactly; on an accelerator the work is shorter than it says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from quantize.kernels import READ_FROM, Runtime
from quantize.layers import Linear, Model, matches, read_model, select
from quantize.methods.base import MethodSpec
from quantize.precision import computed_in
from quantize.preflight.memory import RULE, Load, peak_memory
from quantize.preflight.serving import Served, serve
from quantize.preflight.smoothing import resolve_mappings
from quantize.schemes import Scheme
from quantize.spec import QuantizeSpec
from sqtool.errors import UsageError

# Import of llm-compressor and its libraries, load and save of a small model: seen on 2 cores.
START_SECONDS = 12.0
# What a calibration pass reaches of a plain matrix product's speed, seen with a 14 M model on 2 cores: attention, norms
# and copies take the rest.
EFFICIENCY = 0.2
# GPTQ walks a layer's columns one by one in Python: seconds a column, whatever the number of rows.
COLUMN_SECONDS = 4e-4
DEFAULT_TOKENS = 64 * 512
DEFAULT_ROW = 512


def plan(
    spec: QuantizeSpec,
    *,
    model: Path,
    tokens: int | None = None,
    row_length: int = DEFAULT_ROW,
    runtime: Runtime | None = None,
    accelerator: bool = False,
    memory: int | None = None,
) -> dict[str, Any]:
    """What `quantize` would do with `spec` and the model in folder `model`, and what `runtime` would make of it.

    `tokens` is the size of the calibration set and `row_length` that of its rows, for the estimates. `accelerator`
    says whether quantizing has one; `memory` is what the host has, in bytes. Without `runtime` no kernels are looked
    up.

    Raises UsageError for a target or ignore that matches nothing, a layer matched twice, columns that the group size
    does not divide, mappings that are not there, or a layer that the runtime cannot run; DataError when the model's
    files are not what they should be.
    """
    if spec.checkpoint is not None:
        return {"checkpoint": spec.checkpoint, "methods": [], "seconds": 0.0}
    found = read_model(model)
    chosen = assign(spec, found)
    size = found.nbytes
    methods: list[dict[str, Any]] = []
    quantized: dict[str, float] = {}
    for (where, method), layers in chosen:
        scheme = method.weights()
        if scheme is None:
            methods.append({"method": where, "scheme": None, "layers": 0})
            continue
        before = sum(2.0 * layer.weights for layer in layers)
        # A simulated checkpoint holds 16-bit weights.
        simulated = bool(getattr(method, "simulate", False))
        after = before if simulated else sum(scheme.stored_bits(x.columns) * x.weights / 8 for x in layers)
        for layer in layers:
            quantized[layer.name] = scheme.stored_bits(layer.columns)
        size += int(after - before)
        methods.append(
            {
                "method": where,
                "scheme": getattr(method, "scheme", None),
                "bits": scheme.bits,
                "group_size": scheme.group_size,
                "symmetric": scheme.symmetric,
                "activation_bits": scheme.activation_bits,
                "simulated": simulated,
                "layers": len(layers),
                "targets": _matched(found, getattr(method, "targets", [])),
                "ignore": _matched(found, getattr(method, "ignore", [])),
            }
        )
    mappings = [
        resolved
        for (where, method), _ in chosen
        if (resolved := resolve_mappings(method, found, where=where)) is not None
    ]
    schemes = {x.name: scheme for (_, m), layers in chosen if (scheme := m.weights()) is not None for x in layers}
    served = [] if runtime is None or spec.simulated else serve(schemes, found.linears, runtime)
    _check_served(served, runtime)
    calibration = {x.name: str(m.calibration) for (_, m), layers in chosen for x in layers}
    stored = "bfloat16" if any(t.dtype == "BF16" for t in found.tensors.values()) else "float16"
    computed = computed_in(spec.precision, stored, accelerator=accelerator or spec.backend != "llmcompressor")
    value = 4 if computed == "float32" else 2
    load = Load(tokens or DEFAULT_TOKENS, spec.batch_size, row_length, value)
    peak = peak_memory(found, calibration, load, accelerator=accelerator)
    weights = sum(found.linears[name].weights for name in quantized)
    bits = sum(found.linears[name].weights * b for name, b in quantized.items()) / max(1, weights)
    seconds = _seconds(chosen, found, tokens or DEFAULT_TOKENS)
    return {
        "architecture": found.architecture,
        "backend": spec.backend,
        "methods": methods,
        "layers_quantized": len(quantized),
        "layers_left": [name for name in found.linears if name not in quantized],
        "bytes_before": found.nbytes,
        "bytes_after": size,
        "bits_per_weight": round(bits, 3),
        "simulated": spec.simulated,
        "seconds": round(seconds, 1),
        "seconds_rule": (
            f"operations for {tokens or DEFAULT_TOKENS} calibration tokens at {EFFICIENCY:.0%} of this machine's "
            f"measured matrix-product speed, plus {START_SECONDS:.0f} s to start"
        ),
        "mappings": [m.to_json() for m in mappings],
        "kernels": [s.to_json() for s in served],
        "runtime": None if runtime is None else f"vLLM {runtime.version}, {runtime.name}",
        "memory": {"host_bytes": peak.host, "device_bytes": peak.device, "available_bytes": memory, "rule": RULE},
        "warnings": [
            *(warning for m in mappings for warning in m.warnings()),
            *_served_warnings(served, runtime),
            *_memory_warnings(peak.host, memory),
        ],
    }


def _matched(model: Model, patterns: Sequence[str]) -> dict[str, int]:
    """How many linear layers each pattern matches."""
    return {pattern: sum(matches(name, pattern) for name in model.linears) for pattern in patterns}


def _check_served(served: Sequence[Served], runtime: Runtime | None) -> None:
    failing = [s for s in served if s.kernel.status == "fails"]
    if failing and runtime is not None:
        worst = failing[0]
        raise UsageError(
            f"vLLM {runtime.version} cannot run {sum(s.layers for s in failing)} layers on this {runtime.name}, e.g. "
            f"{worst.example}: {worst.kernel.reason}",
            remedy="Take another scheme or group size, ignore these layers, or serve on another device (engine.env).",
        )


def _served_warnings(served: Sequence[Served], runtime: Runtime | None) -> list[str]:
    found = [
        f"{s.layers} layers, e.g. {s.example}, {s.kernel.status}: {s.kernel.reason}"
        if not s.kernel.name
        else f"{s.layers} layers, e.g. {s.example}, fall back to {s.kernel.name}: {s.kernel.reason}"
        for s in served
        if s.kernel.status not in ("runs", "fails")
    ]
    if served and runtime is not None and not runtime.version.startswith(READ_FROM):
        found.append(f"the table of kernels was read from vLLM {READ_FROM}; this is {runtime.version}")
    return found


def _memory_warnings(needed: int, available: int | None) -> list[str]:
    if available is None or needed <= available:
        return []
    has = f"this machine has {available / 1e9:.1f} GB"
    return [f"quantizing may need {needed / 1e9:.1f} GB of memory, and {has} (an estimate, see memory.rule)"]


Assignment = list[tuple[tuple[str, MethodSpec], list[Linear]]]


def assign(spec: QuantizeSpec, model: Model) -> Assignment:
    """The layers of each method, checked: every pattern matches, none is quantized twice, groups divide columns."""
    result: Assignment = []
    owner: dict[str, str] = {}
    for place, step in enumerate(spec.methods):
        method = step.method
        where = f"methods.{place}.{method.name}"
        scheme = method.weights()
        if scheme is None:
            result.append(((where, method), []))
            continue
        layers = select(model.linears, getattr(method, "targets", []), getattr(method, "ignore", []), where=where)
        for layer in layers:
            if layer.name in owner:
                raise UsageError(
                    f"{owner[layer.name]} and {where} both quantize {layer.name}",
                    remedy="A layer is quantized once: narrow the targets, or ignore it in one of them.",
                )
            owner[layer.name] = where
            if layer.tied:
                raise UsageError(
                    f"{where}: {layer.name} shares its weight with the input embedding, which stays as it is",
                    remedy="Add lm_head to ignore.",
                )
        _check_groups(layers, scheme, where)
        result.append(((where, method), layers))
    return result


def _check_groups(layers: Sequence[Linear], scheme: Scheme, where: str) -> None:
    if scheme.group_size is None:
        return
    odd = [layer for layer in layers if layer.columns % scheme.group_size]
    if not odd:
        return
    sizes = [g for g in (32, 64, 128, 256) if all(layer.columns % g == 0 for layer in layers)]
    first = odd[0]
    remedy = f"Use group_size: {sizes[-1]}" if sizes else "Add these layers to ignore"
    raise UsageError(
        f"{where}: group size {scheme.group_size} does not divide the input features of {len(odd)} layers, "
        f"e.g. {first.name} with {first.columns}",
        remedy=f"{remedy}, or use a scheme with one scale per channel.",
    )


def _seconds(chosen: Assignment, model: Model, tokens: int) -> float:
    linear = sum(x.weights for x in model.linears.values() if not x.tied)
    forward = 2.0 * linear * tokens
    work, fixed = 0.0, START_SECONDS
    for (_, method), layers in chosen:
        if method.calibration in ("forward", "hessian", "grid"):
            # Each layer sees the tokens twice: once to be calibrated, once to feed the next layer what it now gives.
            work += 2 * forward
        if method.calibration == "hessian":
            work += sum(2.0 * tokens * x.columns**2 + x.rows * x.columns**2 + x.columns**3 for x in layers)
            fixed += COLUMN_SECONDS * sum(x.columns for x in layers)
        if method.calibration == "grid":
            work += (1 + getattr(method, "n_grid", 20)) * 2.0 * tokens * sum(x.weights for x in layers)
    return fixed + work / (EFFICIENCY * _matrix_speed()) if work else fixed


@cache
def _matrix_speed() -> float:
    """Operations per second of a float32 matrix product of the size that calibration does, best of 0.1 s."""
    import numpy as np

    left, right = np.ones((1024, 512), np.float32), np.ones((512, 512), np.float32)
    best, until = float("inf"), time.perf_counter() + 0.1
    while True:
        start = time.perf_counter()
        left @ right
        stop = time.perf_counter()
        best = min(best, stop - start)
        if stop > until:
            return 2.0 * 1024 * 512 * 512 / best
