"""Whether the scales of an FP8 KV cache hold what calibration saw. Import it only inside functions.

The pipeline runs each part of the model twice: once to find the scales, once to feed the next part. The second time
every key and value is compared with what its scale can hold, so the counts are exact for the calibration tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sqtool.errors import InfrastructureError, UsageError

LARGEST = 448.0
"""The largest number of FP8 E4M3."""
ROUNDING = 2**-8
"""Scales are stored in 16 bits: the largest value seen may lie outside of its own scale by that much."""
PARTS = ("k", "v")


class CacheWatch:
    """Counts, for each attention layer, keys and values that lie outside of the range of their scale."""

    def __init__(self) -> None:
        self._names: dict[torch.nn.Module, str] = {}
        self._hooks: list[Any] = []
        self.lines: dict[str, dict[str, Any]] = {}

    def start(self, model: torch.nn.Module) -> None:
        """Watch every attention layer of `model` whose cache is to be quantized.

        Raises InfrastructureError when there is none (llm-compressor would go on without a word), UsageError where a
        runtime caches something else than keys and values.
        """
        for name, module in model.named_modules():
            if hasattr(module, "k_scale") and hasattr(module, "kv_cache"):
                if hasattr(module, "kv_b_proj"):
                    raise UsageError(
                        f"{name} has multi-head latent attention: a runtime caches its latent vectors, and "
                        "llm-compressor would measure the keys and values that are made of them",
                        remedy="Drop kv_cache for this model.",
                    )
                self._names[module] = name
                hook = self._counter(module, name)
                self._hooks.append(module.kv_cache.register_forward_pre_hook(hook))
        if not self._names:
            raise InfrastructureError(
                f"llm-compressor finds no attention in {type(model).__name__} whose cache it could quantize",
                remedy="Drop kv_cache, or serve with a cache of FP8 and scales of 1 (vLLM: --kv-cache-dtype fp8).",
            )

    def _counter(self, module: torch.nn.Module, name: str) -> Any:
        def count(_cache: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if name not in self.lines:
                return
            for part, states in zip(PARTS, inputs[:2], strict=True):
                line, scale = self.lines[name][part], getattr(module, f"{part}_scale").float()
                size = states.detach().float().abs()
                line["seen"] += size.numel()
                line["largest"] = max(line["largest"], float(size.max()))
                line["saturated"] += int((size > LARGEST * scale * (1 + ROUNDING)).sum())

        return count

    def scaled(self, modules: Iterable[torch.nn.Module]) -> None:
        """The attention layers among `modules` have their scales now; from here on they are counted.

        Raises InfrastructureError that names a layer whose scale is no positive number.
        """
        for module in modules:
            if (name := self._names.get(module)) is None:
                continue
            line: dict[str, Any] = {}
            for part in PARTS:
                scale = getattr(module, f"{part}_scale").float()
                if not (torch.isfinite(scale).all() and (scale > 0).all()):
                    raise InfrastructureError(
                        f"{name} got a {part}_scale that is zero or not finite",
                        remedy="Look for NaN in the model, or quantize the cache of other layers only.",
                    )
                line[part] = {
                    "scale": {"min": float(scale.min()), "max": float(scale.max())},
                    "scales": scale.numel(),
                    "seen": 0,
                    "saturated": 0,
                    "largest": 0.0,
                }
            self.lines[name] = line

    def end(self) -> list[dict[str, Any]]:
        """The pass is over: a line for each layer, in the model's order.

        Raises InfrastructureError for a layer that no token reached: its scales are whatever memory held.
        """
        for hook in self._hooks:
            hook.remove()
        found = []
        for name in self._names.values():
            line = self.lines.get(name)
            if line is None or not line["k"]["seen"]:
                raise InfrastructureError(
                    f"no calibration token went through the cache of {name}, so its scales mean nothing",
                    remedy="Drop kv_cache: llm-compressor does not see this architecture's cache.",
                )
            for part in PARTS:
                line[part]["saturated_share"] = line[part]["saturated"] / line[part]["seen"]
            found.append({"name": name, "method": "kv_cache", **line})
        return found


def summarize(lines: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """(what the stage's summary says of the cache, warnings)."""
    parts = [(line["name"], part, line[part]) for line in lines for part in PARTS]
    name, part, worst = max(parts, key=lambda found: found[2]["saturated_share"])
    scales = [bound for _, _, found in parts for bound in found["scale"].values()]
    notes = []
    unity = sorted({layer for layer, _, found in parts if set(found["scale"].values()) == {1.0}})
    if unity:
        notes.append(
            f"the KV cache of {unity[0]} and {len(unity) - 1} more layers has scales of 1, as if never calibrated"
            if len(unity) > 1
            else f"the KV cache of {unity[0]} has a scale of 1, as if it was never calibrated"
        )
    if worst["saturated_share"] > 1e-4:
        notes.append(
            f"{worst['saturated_share']:.2%} of the {'keys' if part == 'k' else 'values'} of {name} are larger than "
            "its FP8 scale can hold"
        )
    return {
        "layers": len(lines),
        "scales_per_layer": lines[0]["k"]["scales"],
        "scale_min": min(scales),
        "scale_max": max(scales),
        "saturated_share": {
            p: sum(line[p]["saturated"] for line in lines) / sum(line[p]["seen"] for line in lines) for p in PARTS
        },
        "worst": {"name": name, "part": part, "saturated_share": worst["saturated_share"]},
    }, notes
