"""What may follow what in `methods:`, as far as the recipe alone can tell. `plan` checks the layers themselves."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.methods.base import MethodSpec


def check(methods: Sequence[MethodSpec]) -> list[str]:
    """One sentence per combination that cannot be, with what to do; empty when all is well."""
    problems: list[str] = []
    quantizing = [m for m in methods if m.quantizes]
    if not quantizing:
        names = ", ".join(m.name for m in methods)
        problems.append(f"{names} only prepares the model: add a method that quantizes, e.g. gptq: {{scheme: W8A8}}")
    problems += _transforms(methods)
    problems += _overlaps(quantizing)
    if len(methods) > 1 and any(getattr(m, "simulate", False) for m in methods):
        problems.append("rtn with simulate: true stands alone: its 16-bit weights cannot be mixed with packed ones")
    return problems


def _transforms(methods: Sequence[MethodSpec]) -> list[str]:
    problems: list[str] = []
    for place, method in enumerate(methods):
        if method.quantizes:
            continue
        if any(m.name == method.name for m in methods[:place]):
            problems.append(f"{method.name} is there twice: once is enough")
        following = [scheme for m in methods[place + 1 :] if (scheme := m.weights()) is not None]
        if any(m.quantizes for m in methods[:place]):
            problems.append(f"{method.name} must come before every method that quantizes")
        elif following and not any(not scheme.weight_only for scheme in following):
            problems.append(
                f"{method.name} makes activations easier to quantize, and nothing after it quantizes activations: "
                "use scheme W8A8 or fp8, or drop it"
            )
    return problems


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
