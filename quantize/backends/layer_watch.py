"""What each layer lost when it was rounded, written down while the backend works. Import it only inside functions.

A line of layers.jsonl (the relative errors are root mean squares over the whole layer; lower is better):

    {"name": "model.layers.0.mlp.down_proj", "method": "gptq", "rows": 512, "columns": 1024, "bits": 4,
     "weight_error": 0.09, "output_error": 0.02, "scale": {"min": ..., "median": ..., "max": ...}, "zero_groups": 0}

`weight_error` compares with the weights as they stood before rounding, so after awq or smoothquant has rescaled them.
`output_error` compares what the layer makes of the calibration tokens that reached it, before and after.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from llmcompressor.observers.helpers import flatten_for_calibration

from sqtool.errors import InfrastructureError, UsageError

OUTPUT_TOKENS = 1024
"""Calibration tokens of a layer that `outputs` looks at: enough for a mean square, little to keep."""


class LayerWatch:
    """Sees every layer before and after it is rounded; `advance` is called once for each part of the model."""

    def __init__(
        self,
        path: Path,
        *,
        report: Literal["weights", "outputs", "off"],
        zero_groups: Literal["stop", "allow"],
        stored: torch.dtype,
    ) -> None:
        self._path, self._report, self._zero_groups, self._stored = path, report, zero_groups, stored
        self._names: dict[torch.nn.Module, str] = {}
        self._before: dict[torch.nn.Module, torch.Tensor] = {}
        self._inputs: dict[torch.nn.Module, list[torch.Tensor]] = {}
        self._hooks: list[Any] = []

    def start(self, model: torch.nn.Module) -> None:
        """A method begins its pass over `model`: keep some inputs of the layers that it will round."""
        self._names = {module: name for name, module in model.named_modules()}
        if self._report == "outputs":
            for module in _observed(model.modules()):
                self._hooks.append(module.register_forward_pre_hook(self._keep))

    def _keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        kept = self._inputs.setdefault(module, [])
        missing = OUTPUT_TOKENS - sum(len(x) for x in kept)
        if missing > 0:
            kept.append(inputs[0].detach().flatten(0, -2)[:missing].clone())

    def reached(self, modules: Iterable[torch.nn.Module], counted: Container[torch.nn.Module] | None) -> None:
        """Raises UsageError for a layer that needed data and saw none: its scales would be whatever memory held.

        `counted` has the layers whose inputs GPTQ has seen, None for other methods.
        """
        for module in _observed(modules):
            observer = getattr(module, "input_observer", None)
            missed = observer is not None and not observer.has_statistics
            if missed or (counted is not None and module not in counted):
                raise UsageError(
                    f"no calibration token reached {self._names[module]}",
                    remedy="Set quantize.calibrate_all_experts: true, calibrate with more samples, or ignore it.",
                )

    def before(self, modules: Iterable[torch.nn.Module], *, changes_weights: bool) -> list[torch.nn.Module]:
        """The layers among `modules` that are rounded next. Keeps a copy of their weights when the method (GPTQ)
        writes the rounded ones over them; others round when the checkpoint is written."""
        found = _observed(modules)
        if changes_weights and self._report != "off":
            self._before = {module: module.weight.detach().clone() for module in found}
        return found

    def after(self, modules: Iterable[torch.nn.Module], method: str) -> None:
        """Write a line for each of `modules`. Raises InfrastructureError that names the layer where a scale is no
        positive number or a group came out as nothing but zeros. `layer_report: off` looks at none."""
        if self._report == "off":
            return
        for module in modules:
            self.write([self._line(module, method)])

    def forget(self) -> None:
        """Drop the weights that `before` kept."""
        self._before.clear()

    def write(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append `lines` to layers.jsonl at once, so that a run that dies shows how far it came."""
        if self._report != "off":
            with self._path.open("a", encoding="utf-8") as handle:
                handle.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)

    def end(self) -> None:
        """The method's pass is over."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._inputs.clear()

    @torch.no_grad()
    def _line(self, module: Any, method: str) -> dict[str, Any]:
        name, arguments = self._names[module], module.quantization_scheme.weights
        # As they will be in the file: scales are rounded to the model's own type, on a CPU from float32.
        scale = module.weight_scale.to(self._stored).to(module.weight_scale.dtype)
        whole = getattr(module, "weight_global_scale", None)
        shown = scale.float() if whole is None else scale.float() / whole.float()
        now = module.weight
        before = self._before.get(module, now)
        rounded = fake_quantize(now, scale, getattr(module, "weight_zero_point", None), arguments, whole)
        empty = flatten_for_calibration(rounded, "weight", arguments).abs().amax((0, -1)) == 0
        lost = rounded - before
        pairs = {"weight_error": (lost, before)}
        if kept := self._inputs.pop(module, None):
            seen = torch.cat(kept)
            pairs["output_error"] = (seen @ lost.T, seen @ before.T)
        # Everything is asked of the device at once: each question by itself would wait for all work before it.
        asked = [(torch.isfinite(shown) & (shown > 0)).all(), empty.sum(), *shown.aminmax(), shown.median()]
        asked += [torch.linalg.vector_norm(tensor, dtype=torch.float32) for pair in pairs.values() for tensor in pair]
        usable, zeros, low, high, median, *norms = torch.stack([figure.double() for figure in asked]).tolist()
        if not usable:
            raise InfrastructureError(
                f"{name} got a scale that is zero or not finite",
                remedy="Look for NaN in the model's weights, or leave the layer out with ignore.",
            )
        if zeros and self._zero_groups == "stop":
            raise InfrastructureError(
                f"{name}: {zeros:.0f} of its {shown.numel()} groups of weights are nothing but zeros",
                remedy="Look at the model's weights; if they were padded with zeros on purpose, set "
                "quantize.zero_groups: allow.",
            )
        errors = zip(pairs, norms[::2], norms[1::2], strict=True)
        return {
            "name": name,
            "method": method,
            "rows": before.shape[0],
            "columns": before.shape[1],
            "bits": arguments.num_bits,
            # Root mean squares, one over the other; 0 for 0 over 0.
            **{key: error / size if size else 0.0 for key, error, size in errors},
            "scale": {"min": low, "median": median, "max": high},
            "zero_groups": int(zeros),
        }


def _observed(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Those that the method at work will round: it has attached an observer to their weights."""
    return [module for module in modules if hasattr(module, "weight_observer")]
