"""What may follow what in `methods:`, as far as the recipe alone can tell. `plan` checks the layers themselves."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.methods.base import MethodSpec

CACHE = "kv_cache"


def check(methods: Sequence[MethodSpec]) -> list[str]:
    """One sentence per combination that cannot be, with what to do; empty when all is well."""
    problems: list[str] = []
    quantizing = [m for m in methods if m.quantizes]
    if not quantizing:
        names = ", ".join(m.name for m in methods)
        problems.append(f"{names} only prepares the model: add a method that quantizes, e.g. gptq: {{scheme: W8A8}}")
    problems += _repeated(methods)
    problems += _order(methods)
    problems += _unused_transforms(methods)
    problems += _overlaps(quantizing)
    if len(methods) > 1 and any(getattr(m, "simulate", False) for m in methods):
        problems.append("rtn with simulate: true stands alone: its 16-bit weights cannot be mixed with packed ones")
    return problems


def _repeated(methods: Sequence[MethodSpec]) -> list[str]:
    """Methods that concern the whole model and are there more than once."""
    names = [m.name for m in methods if m.weights() is None]
    return [f"{name} is there twice: once is enough" for name in dict.fromkeys(names) if names.count(name) > 1]


def _order(methods: Sequence[MethodSpec]) -> list[str]:
    problems: list[str] = []
    for place, method in enumerate(methods):
        before = [m.name for m in methods[:place] if m.quantizes and m.name != CACHE]
        if method.scales_layers and before:
            problems.append(
                f"{method.name} must come before every method that quantizes: it rescales weights, also those that "
                f"{before[0]} has rounded already"
            )
        if method.name == CACHE and any(m.name != CACHE for m in methods[place + 1 :]):
            problems.append("kv_cache must come last: its scales are measured on the weights as the others leave them")
    return problems


def _unused_transforms(methods: Sequence[MethodSpec]) -> list[str]:
    problems: list[str] = []
    for place, method in enumerate(methods):
        if method.quantizes:
            continue
        following = [scheme for m in methods[place + 1 :] if (scheme := m.weights()) is not None]
        weights_before = any(m.weights() is not None for m in methods[:place])
        if not any(not scheme.weight_only for scheme in following) and not weights_before and _quantizes_any(methods):
            problems.append(
                f"{method.name} makes activations easier to quantize, and nothing after it quantizes activations: "
                "use scheme W8A8 or fp8, or drop it"
            )
    return problems


def _quantizes_any(methods: Sequence[MethodSpec]) -> bool:
    return any(m.quantizes for m in methods)


def _overlaps(quantizing: Sequence[MethodSpec]) -> list[str]:
    problems: list[str] = []
    taken: dict[str, str] = {}
    for method in quantizing:
        for target in getattr(method, "targets", []):
            if target in taken:
                problems.append(
                    f"{taken[target]} and {method.name} both quantize {target}: a layer is quantized once; "
                    "give each its own targets"
                )
            taken[target] = method.name
    return problems
