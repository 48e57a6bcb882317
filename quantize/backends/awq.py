"""llm-compressor's AWQ with the same scales in less time and memory. Import it only inside functions.

Its grid search makes fewer passes (`search`), and what the model made of the calibration set while it was calibrated is
not made again where it is in host memory. It also runs without an accelerator, and fails where the mappings of the
architecture are unknown instead of quantizing as if nothing had been asked.
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.offload.dist_utils import is_distributed
from llmcompressor.core import active_session
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from pydantic import PrivateAttr

from quantize.backends import mappings as known_mappings
from quantize.backends.search import Search, first


class UnpinnedCache(IntermediatesCache):
    """A cache whose tensors stay in ordinary memory. Pinning speeds up copies to an accelerator; without one it is
    an error in torch ("Cannot access accelerator device"), and AWQModifier 0.14 pins without asking."""

    def pin_memory(self, batch_index: int, input_names: list[str] | None = None) -> None:
        return None


class Awq(AWQModifier):
    """AWQModifier whose grid search leaves a setting that has lost, and that insists on right mappings."""

    _search: Search | None = PrivateAttr(default=None)
    _seen: dict[torch.nn.Module, list[tuple[torch.Tensor, int]]] = PrivateAttr(default_factory=dict)
    """What a part of the model made of each batch in calibration, with the tensor's version; in host memory only."""
    _changed: set[torch.nn.Module] = PrivateAttr(default_factory=set)
    """Modules that were rescaled."""

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        if self.mappings is None:  # type: ignore[has-type]
            self.mappings = known_mappings.awq(state.model)
        return bool(super().on_initialize(state, **kwargs))

    def _set_resolved_mappings(self, model: Any) -> None:
        try:
            super()._set_resolved_mappings(model)
        except ValueError as error:
            raise known_mappings.none_fits("awq", model) from error
        if not self._resolved_mappings:
            raise known_mappings.none_fits("awq", model)

    def _setup_activation_cache_hooks(self) -> None:
        super()._setup_activation_cache_hooks()
        if torch.accelerator.is_available():
            return
        for parent in self._parent_args_cache:
            self._parent_args_cache[parent] = UnpinnedCache(None, self.offload_device)
            self.register_hook(parent, self._see, "forward")

    def _see(self, module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        made = first(output)
        self._seen.setdefault(module, []).append((made, made._version))

    def _compute_best_scale(self, mapping: Any, *args: Any) -> torch.Tensor:
        self._changed |= {mapping.smooth_layer, *mapping.balance_layers}  # as soon as this returns
        state = active_session().state
        if is_distributed() or (state and state.loss_masks):
            return super()._compute_best_scale(mapping, *args)
        self._search = Search(
            self._parent_args_cache[mapping.parent], prefetch=bool(state and state.sequential_prefetch)
        )
        try:
            return super()._compute_best_scale(mapping, *args)
        finally:
            self._search = None

    def _get_grid_search_params(self) -> list[tuple[float, bool]]:
        settings = list(super()._get_grid_search_params())
        return settings if self._search is None else self._search.arranged(settings)

    def _run_samples(self, module: torch.nn.Module) -> Any:
        if self._search is not None:
            # Not the outputs but what makes them: `_compute_loss` asks for as many as it needs.
            return module
        seen = self._seen.pop(module, [])
        same = not self._changed.intersection(module.modules()) and all(made._version == was for made, was in seen)
        if seen and same and len(seen) == len(self._parent_args_cache[module]):
            return [made for made, _ in seen]
        return super()._run_samples(module)

    @torch.no_grad()
    def _compute_loss(self, fp16_outputs: list[torch.Tensor], int_w_outputs: Any) -> float:
        if self._search is None:
            return float(super()._compute_loss(fp16_outputs, int_w_outputs))
        return self._search.loss(int_w_outputs, fp16_outputs)
