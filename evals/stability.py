"""Numerical stability, seen in the same forward pass that drift needs: per decoder layer the largest activation, NaN
and infinity, and how much of what is quantized to FP8 lies beyond what FP8 can say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from evals.layerwise import decoder_layers

if TYPE_CHECKING:
    import torch

FP8_MAX = 448.0
"""The largest number of FP8 E4M3."""


@dataclass
class _Share:
    """How many of the values seen were beyond the limit."""

    beyond: int = 0
    of: int = 0

    def add(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        """Values [..., n] against FP8_MAX times a scale that broadcasts with them."""
        limit = scale.to(values.device).float() * FP8_MAX
        self.of += values.numel()
        # Mostly nothing saturates, and looking for the extremes is one pass without a copy.
        low, high = values.aminmax()
        if not float(max(-low, high)) <= float(limit.min()):
            self.beyond += int((values.float().abs() > limit).sum())

    @property
    def share(self) -> float:
        return self.beyond / self.of if self.of else 0.0


@dataclass
class _Layer:
    largest: float | None = None
    nan: int = 0
    inf: int = 0
    fp8: dict[str, _Share] = field(default_factory=dict)
    dynamic: bool = False
    kv: dict[str, _Share] = field(default_factory=dict)

    def see(self, output: torch.Tensor) -> None:
        low, high = output.aminmax()
        peak = float(max(-low, high))
        if not (peak < float("inf")):
            self.nan += int(output.isnan().sum())
            self.inf += int(output.isinf().sum())
            finite = output[output.isfinite()]
            if not finite.numel():
                return
            peak = float(finite.abs().max())
        self.largest = peak if self.largest is None else max(self.largest, peak)

    def row(self) -> dict[str, Any]:
        """What `layers.jsonl` says of the layer; FP8 and KV only where there is any."""
        row: dict[str, Any] = {"activation_max": self.largest, "nan": self.nan, "inf": self.inf}
        if self.fp8:
            worst = max(self.fp8, key=lambda name: self.fp8[name].share)
            total = _Share(sum(s.beyond for s in self.fp8.values()), sum(s.of for s in self.fp8.values()))
            row |= {"fp8_saturation": total.share, "fp8_worst": worst, "fp8_worst_saturation": self.fp8[worst].share}
        elif self.dynamic:
            row["fp8_saturation"] = 0.0
        return row | {f"{side}_saturation": share.share for side, share in self.kv.items()}


class Monitor:
    """Watches a model while the `with` block runs; `begin` says which tokens of the next forward pass are real.

    `kv_scales` are those of the checkpoint (see `kv_scales`). A dynamic FP8 scale is the token's own maximum, so
    nothing saturates: its share is 0 by construction and not looked for.
    """

    def __init__(self, model: Any, kv_scales: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self._layers = {name: _Layer() for name, _ in decoder_layers(model)}
        self._mask: torch.Tensor | None = None
        self._hooks = []
        modules = decoder_layers(model)
        for name, layer in modules:
            self._hooks.append(layer.register_forward_hook(self._output(self._layers[name])))
            for inner, module in layer.named_modules():
                quantized = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
                if quantized is None or quantized.type != "float" or quantized.num_bits != 8:
                    continue
                if quantized.dynamic is False and hasattr(module, "input_scale"):
                    share = self._layers[name].fp8.setdefault(inner, _Share())
                    self._hooks.append(module.register_forward_pre_hook(self._input(share)))
                elif quantized.dynamic:  # what is left are attention modules with a quantized KV cache
                    self._layers[name].dynamic = True
        for attention, scales in kv_scales.items():
            inside = next((layer for layer, _ in modules if attention.startswith(f"{layer}.")), None)
            if inside is not None:
                self._watch_cache(model, attention, scales, self._layers[inside])

    def begin(self, lengths: Sequence[int], width: int, device: str) -> None:
        """The next pass has texts of these lengths, padded on the right to `width` tokens."""
        import torch

        ends = torch.tensor(lengths, device=device).unsqueeze(1)
        padded = any(length < width for length in lengths)
        self._mask = torch.arange(width, device=device).unsqueeze(0) < ends if padded else None

    def rows(self) -> dict[str, dict[str, Any]]:
        """What was seen, by layer name in the order of depth."""
        return {name: layer.row() for name, layer in self._layers.items()}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _real(self, values: torch.Tensor) -> torch.Tensor:
        """Without padding, where the first two dimensions are texts and tokens."""
        mask = self._mask
        return values if mask is None or values.shape[:2] != mask.shape else values[mask]

    def _output(self, seen: _Layer) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            seen.see(self._real(output[0] if isinstance(output, tuple) else output))

        return hook

    def _input(self, seen: _Share) -> Any:
        def hook(module: Any, args: Any) -> None:
            seen.add(self._real(args[0]), module.input_scale)

        return hook

    def _watch_cache(self, model: Any, name: str, scales: Mapping[str, torch.Tensor], layer: _Layer) -> None:
        """Keys (after the rotary embedding) and values, as they would go into the KV cache."""
        from compressed_tensors.modeling import initialize_hooked_kv_cache, register_key_hook, register_value_hook

        attention = model.get_submodule(name)
        initialize_hooked_kv_cache(model, attention)
        for side, register in (("k", register_key_hook), ("v", register_value_hook)):
            if side not in scales:
                continue
            share = layer.kv.setdefault(side, _Share())
            scale = scales[side].reshape(-1, 1)  # one for all heads, or one each

            # States are [texts, heads, tokens, head size].
            def hook(_module: Any, states: torch.Tensor, share: _Share = share, scale: torch.Tensor = scale) -> None:
                share.add(self._real(states.transpose(1, 2)), scale)

            self._hooks.append(register(attention, hook))


def kv_scales(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """{attention module: {"k": scale, "v": scale}} in a checkpoint's files; empty without any."""
    from safetensors import safe_open

    found: dict[str, dict[str, torch.Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                module, _, name = key.rpartition(".")
                if name in ("k_scale", "v_scale"):
                    found.setdefault(module, {})[name[0]] = tensors.get_tensor(key).float()
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all layers: NaN and infinity counted, the largest activation and its layer, the largest saturations."""
    known = [row for row in rows if row.get("activation_max") is not None]
    peak = max(known, key=lambda row: row["activation_max"], default=None)
    out: dict[str, Any] = {
        "nan": sum(row.get("nan", 0) for row in rows),
        "inf": sum(row.get("inf", 0) for row in rows),
        "activation_max": peak and peak["activation_max"],
        "activation_max_layer": peak and peak["name"],
    }
    for name in ("fp8_saturation", "k_saturation", "v_saturation"):
        shares = [row[name] for row in rows if name in row]
        if shares:
            out[name] = max(shares)
    return out
