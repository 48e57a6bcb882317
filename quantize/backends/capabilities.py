"""What each backend outside can do of a recipe; the rest is an error before anything starts.

llm-compressor is not here: the methods' keys are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantize.methods.base import MethodSpec

GROUP_SIZES = (32, 64, 128)
"""What vLLM reads in the AWQ and GPTQ formats (`MARLIN_SUPPORTED_GROUP_SIZES`, quantization/utils/marlin_utils.py;
`AutoGPTQLinearMethod` asks for them on every device)."""


@dataclass(frozen=True)
class Ability:
    """What a backend makes of one method: the keys that it knows beside scheme, group_size and symmetric."""

    keys: frozenset[str]
    formats: frozenset[tuple[int, bool]]
    """(bits, symmetric) that it writes and vLLM reads."""
    why: str
    """Why not others."""


_COMMON = frozenset({"scheme", "group_size", "symmetric", "targets", "ignore"})
_GPTQ = Ability(
    _COMMON | {"dampening_frac", "actorder"},
    frozenset({(4, True), (8, True)}),
    # AutoGPTQConfig.TYPE_MAP in vLLM 0.32's quantization/auto_gptq.py.
    "vLLM reads the GPTQ format with 4 or 8 bits and without zero points only",
)

ABILITIES: Mapping[str, Mapping[str, Ability]] = {
    "autoawq": {
        "awq": Ability(
            _COMMON | {"duo_scaling"},
            frozenset({(4, False)}),
            "AutoAWQ's GEMM format has 4 bits and zero points",
        )
    },
    "auto-gptq": {"gptq": _GPTQ},
    "gptqmodel": {
        "gptq": _GPTQ,
        "awq": Ability(_COMMON, frozenset({(4, False)}), "the AWQ GEMM format has 4 bits and zero points"),
    },
}


def check(backend: str, methods: Sequence[MethodSpec]) -> list[str]:
    """One sentence per thing that `backend` cannot do; empty when all is well."""
    if backend not in ABILITIES:
        return []
    abilities = ABILITIES[backend]
    if len(methods) != 1 or methods[0].name not in abilities:
        asked = " + ".join(method.name for method in methods)
        return [f"backend {backend} does {' or '.join(abilities)}, and nothing else beside it; asked was {asked}"]
    (method,) = methods
    return _method(backend, method, abilities[method.name])


def _method(backend: str, method: MethodSpec, ability: Ability) -> list[str]:
    problems = []
    for key, field in type(method).model_fields.items():
        fixed = key not in ability.keys or key in ("targets", "ignore")
        if fixed and getattr(method, key) != field.get_default(call_default_factory=True):
            problems.append(f"backend {backend} has no setting {method.name}.{key}: leave it out")
    if "duo_scaling" in ability.keys and not isinstance(getattr(method, "duo_scaling", True), bool):
        problems.append(f"backend {backend} takes {method.name}.duo_scaling true or false")
    scheme = method.weights()
    if scheme is None or not scheme.weight_only or (scheme.bits, scheme.symmetric) not in ability.formats:
        problems.append(f"backend {backend} cannot write {getattr(method, 'scheme', '?')} here: {ability.why}")
    elif scheme.group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        problems.append(f"backend {backend}: vLLM reads its format with group sizes {sizes}, not {scheme.group_size}")
    return problems
