"""Settings of AWQ's grid search that have lost, found by the tokens that say most. Import it only inside functions.

A module that looks at one token at a time (an MLP, a linear layer) makes the same of a token in whatever company. Some
tokens have far more of the error than others, so a sum that begins with those soon exceeds the best setting's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

STRIP = 1024
"""Tokens that go through the module at once: few enough to stop early, enough for full speed."""
ROUNDINGS = 4
"""Of a sum of squared differences in the dtype of the outputs: a difference counts twice, then its square, the sum."""
ADDING = 1e-5
"""More than the order of its summands makes of a sum in float32, which is what sums are made in."""
DTYPES = (torch.bfloat16, torch.float32)
"""Whose squares do not vanish: in these a sum is at most so many roundings away from the exact one."""


class Sieve:
    """Calibration tokens of one module, those with most of the error of one setting first."""

    def __init__(self, name: str, inputs: torch.Tensor, wanted: list[torch.Tensor], order: torch.Tensor) -> None:
        self.name = name
        self.order = order
        self.shapes = [batch.shape for batch in wanted]
        self.strips = inputs[order].split(STRIP)
        self.targets = flat(wanted)[order].split(STRIP)
        self.count = sum(batch.numel() for batch in wanted)
        # AWQModifier's own sum may be lower by its roundings, and this one higher by as many.
        rounding = torch.finfo(wanted[0].dtype).eps / 2
        self.floor = ((1 - rounding) / (1 + rounding)) ** ROUNDINGS * (1 - ADDING)

    def outputs(self, module: torch.nn.Module, least: float) -> list[torch.Tensor] | None:
        """What `module` makes of the calibration set, by batch; None, before all of it is made, once AWQModifier's
        mean squared error of it cannot but exceed `least`."""
        made: list[torch.Tensor] = []
        total = 0.0
        for strip, target in zip(self.strips, self.targets, strict=True):
            made.append(self.through(module, strip))
            total += torch.nn.functional.mse_loss(made[-1], target, reduction="sum").item()
            if total * self.floor > least * self.count:
                return None
        tokens = torch.cat(made)
        whole = torch.empty_like(tokens)
        whole[self.order] = tokens
        parts = whole.split([shape[:-1].numel() for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def through(self, module: torch.nn.Module, strip: torch.Tensor) -> torch.Tensor:
        """What `module` makes of tokens, [tokens, features]."""
        output = module(**{self.name: strip[None]})
        return (output[0] if isinstance(output, tuple) else output).flatten(0, -2)


def sieve(
    module: torch.nn.Module, batches: Iterable[dict[str, Any]], wanted: list[torch.Tensor], found: list[torch.Tensor]
) -> Sieve | None:
    """A sieve for `module`, which makes `found` of `batches` where `wanted` is right; None where it may look at more
    than one token at a time, or makes another thing of a token among others: that is tried, not assumed."""
    given = list(batches)
    names = {name for batch in given for name in batch}
    inputs = [value for batch in given for value in batch.values()]
    if len(names) != 1 or not all(isinstance(value, torch.Tensor) for value in inputs):
        return None
    if [value.shape[:-1] for value in inputs] != [batch.shape[:-1] for batch in wanted]:
        return None
    if wanted[0].dtype not in DTYPES or found[0].dtype != wanted[0].dtype:
        return None
    made = flat(found)
    order = (made.float() - flat(wanted).float()).square_().sum(-1).argsort(descending=True)
    tried = Sieve(names.pop(), flat(inputs), wanted, order)
    return tried if torch.equal(tried.through(module, tried.strips[0]), made[order[:STRIP]]) else None


def flat(batches: list[torch.Tensor]) -> torch.Tensor:
    """All tokens of batches, [tokens, features]."""
    return torch.cat([batch.flatten(0, -2) for batch in batches])
