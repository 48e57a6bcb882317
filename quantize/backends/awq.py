"""llm-compressor's AWQ with the same scales in less time and memory. Import it only inside functions.

Its grid search runs the whole calibration set through a part of the model for each of 20 settings, keeps all outputs
and adds up their squared errors. Errors only add up, so a setting has lost as soon as its sum exceeds the best one's:
ours stops there, begins with the settings that are likely to win and with the batches that have the most of the error,
and keeps the outputs of one batch. Of two that are equal it takes the one that llm-compressor would have come to first.
It also runs without an accelerator, and fails where the mappings of the architecture are unknown instead of quantizing
as if nothing had been asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf, nextafter
from typing import Any

import torch
from compressed_tensors.offload.dist_utils import is_distributed
from llmcompressor.core import active_session
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from pydantic import PrivateAttr

from quantize.backends import mappings as known_mappings

LIKELY = 0.3
"""The ratio that a search begins with; any near it does as well (benchmarks/calibration/parts.py)."""


ROUNDING = 1e-5
"""More than the order of its summands makes of a sum in float32: a setting that is beyond by less runs to its end."""


class UnpinnedCache(IntermediatesCache):
    """A cache whose tensors stay in ordinary memory. Pinning speeds up copies to an accelerator; without one it is
    an error in torch ("Cannot access accelerator device"), and AWQModifier 0.14 pins without asking."""

    def pin_memory(self, batch_index: int, input_names: list[str] | None = None) -> None:
        return None


class Awq(AWQModifier):
    """AWQModifier whose grid search leaves a setting that has lost, and that insists on right mappings."""

    _best: tuple[float, int] | None = PrivateAttr(default=None)
    """The least loss so far in a grid search, and its place in llm-compressor's order; None outside of a search."""
    _told: float = PrivateAttr(default=inf)
    _places: Iterator[int] = PrivateAttr()
    _order: list[int] | None = PrivateAttr(default=None)
    """Batches, those with most of the error first; None until one setting has been through all of them."""

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

    def _compute_best_scale(self, *args: Any) -> torch.Tensor:
        state = active_session().state
        if is_distributed() or (state and state.loss_masks):
            return super()._compute_best_scale(*args)
        self._best, self._told, self._order = (inf, -1), inf, None
        try:
            return super()._compute_best_scale(*args)
        finally:
            self._best = None

    def _get_grid_search_params(self) -> list[tuple[float, bool]]:
        settings = list(super()._get_grid_search_params())
        order = list(range(len(settings)))
        if self._best is not None:
            order.sort(key=lambda place: abs(settings[place][0] - LIKELY))
        self._places = iter(order)
        return [settings[place] for place in order]

    def _run_samples(self, module: torch.nn.Module) -> Any:
        return super()._run_samples(module) if self._best is None else self._outputs(module)

    def _outputs(self, module: torch.nn.Module) -> Iterator[torch.Tensor]:
        """What `module` makes of the calibration set, a batch at a time, in `_order`."""
        cache = self._parent_args_cache[module]
        if self._order is not None:
            batches = (cache.fetch(index) for index in self._order)
        else:
            batches = cache.iter_prefetch() if active_session().state.sequential_prefetch else iter(cache)
        for batch in batches:
            output = module(**batch)
            yield output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def _compute_loss(self, fp16_outputs: list[torch.Tensor], int_w_outputs: Iterable[torch.Tensor]) -> float:
        if self._best is None:
            return float(super()._compute_loss(fp16_outputs, int_w_outputs))
        order = self._order or list(range(len(fp16_outputs)))
        loss, errors = least_loss(fp16_outputs, int_w_outputs, self._best[0], order)
        if self._order is None and loss < inf and not active_session().state.sequential_prefetch:
            # Prefetching knows one order only.
            each = [error / batch.numel() for error, batch in zip(errors, fp16_outputs, strict=True)]
            self._order = sorted(order, key=lambda index: -each[index])
        found = loss, next(self._places)
        if not found < self._best:
            return inf
        # AWQModifier takes only what is less than all before: an equal one that it would have come to first is made so.
        self._best, self._told = found, min(found[0], nextafter(self._told, -inf))
        return self._told


def least_loss(
    wanted: list[torch.Tensor], found: Iterable[torch.Tensor], least: float, order: list[int]
) -> tuple[float, list[float]]:
    """Mean squared error of the batches `found`, which come in `order`, from `wanted`, summed as AWQModifier does, and
    each one's squared error. Infinity, without asking for more batches, once the sum is beyond that of `least`."""
    device = wanted[0].device
    count = torch.tensor(sum(batch.numel() for batch in wanted), device=device)
    errors = torch.zeros(len(wanted), device=device)
    for index, other in zip(order, found, strict=True):
        errors[index] = torch.nn.functional.mse_loss(wanted[index], other.to(device), reduction="sum")
        if (errors.sum() / count).item() > least * (1 + ROUNDING):
            return inf, errors.tolist()
    total = torch.zeros((), device=device)
    for error in errors:
        total += error
    return (total / count).item(), errors.tolist()
