"""One grid search of AWQ, with AWQModifier's result in fewer passes. Import it only inside functions.

AWQModifier runs the whole calibration set through a part of the model for each of 20 settings, keeps all outputs and
adds up their squared errors. Errors only add up, so a setting has lost as soon as its sum exceeds the best one's: ours
stops there, begins with the settings that are likely to win and with what has the most of the error (batches, and
tokens in host memory where a part of the model looks at one at a time), and keeps the outputs of one batch. Of two
settings that are equal it takes the one that AWQModifier would have come to first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf, nextafter
from typing import Any

import torch

from quantize.backends.sieve import ADDING, Sieve, sieve

LIKELY = 0.3
"""The ratio that a search begins with; any near it does as well (benchmarks/calibration/parts.py)."""


class Search:
    """`cache` has the arguments of the part of the model for each batch: an IntermediatesCache. With `prefetch` the
    next batch is brought while one is computed, for which batches come in their own order."""

    def __init__(self, cache: Any, *, prefetch: bool = False) -> None:
        self.cache = cache
        self.prefetch = prefetch
        self.places: Iterator[int] = iter(())
        self.best: tuple[float, int] = (inf, -1)
        """The least loss so far and its place in AWQModifier's order."""
        self.told = inf
        self.order: list[int] | None = None
        """Batches, those with most of the error first; None until one setting has been through all of them."""
        self.sieve: Sieve | None = None

    def arranged(self, settings: list[tuple[float, bool]]) -> list[tuple[float, bool]]:
        """AWQModifier's settings (ratio, duo scaling), likely ones first."""
        order = sorted(range(len(settings)), key=lambda place: abs(settings[place][0] - LIKELY))
        self.places = iter(order)
        return [settings[place] for place in order]

    def loss(self, module: torch.nn.Module, wanted: list[torch.Tensor]) -> float:
        """What AWQModifier is told of the next setting, which is in `module`: less than all before if it is to be
        taken. `wanted` are the outputs that it should have, by batch."""
        found = self._loss(module, wanted), next(self.places)
        if not found < self.best:
            return inf
        # AWQModifier takes only what is less than all before: an equal one that it would have come to first is made so.
        self.best, self.told = found, min(found[0], nextafter(self.told, -inf))
        return self.told

    def _loss(self, module: torch.nn.Module, wanted: list[torch.Tensor]) -> float:
        """The loss of the setting that is in `module`; infinity for one that has lost."""
        least, in_turn = self.best[0], list(range(len(wanted)))
        if self.sieve is not None:
            outputs = self.sieve.outputs(module, least)
            return inf if outputs is None else least_loss(wanted, outputs, least, in_turn)[0]
        if self.order is not None:
            return least_loss(wanted, self._outputs(module), least, self.order)[0]
        made = list(self._outputs(module)) if on_host(wanted) else []
        loss, errors = least_loss(wanted, made or self._outputs(module), least, in_turn)
        if loss == inf:
            return loss
        if made:
            self.sieve = sieve(module, self.cache, wanted, made)
        if not self.prefetch:
            each = [error / batch.numel() for error, batch in zip(errors, wanted, strict=True)]
            self.order = sorted(in_turn, key=lambda index: -each[index])
        return loss

    def _outputs(self, module: torch.nn.Module) -> Iterator[torch.Tensor]:
        """What `module` makes of the calibration set, a batch at a time, in `order`."""
        if self.order is not None:
            batches = (self.cache.fetch(index) for index in self.order)
        else:
            batches = self.cache.iter_prefetch() if self.prefetch else iter(self.cache)
        for batch in batches:
            yield first(module(**batch))


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
        if (errors.sum() / count).item() > least * (1 + ADDING):
            return inf, errors.tolist()
    total = torch.zeros((), device=device)
    for error in errors:
        total += error
    return (total / count).item(), errors.tolist()


def on_host(wanted: list[torch.Tensor]) -> bool:
    """Whether the outputs are in host memory, which has room for all of them once more."""
    return bool(wanted[0].device.type == "cpu")


def first(output: Any) -> torch.Tensor:
    """The tensor that AWQModifier looks at."""
    made: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return made
