"""Holm's step-down adjustment (Holm 1979, Scandinavian Journal of Statistics 6:65-70)."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: rejecting those <= alpha keeps the family-wise error rate at alpha.

    No assumption about the dependence between the tests. An empty family gives an empty list.
    """
    total = len(p_values)
    order = sorted(range(total), key=lambda index: p_values[index])
    adjusted = [0.0] * total
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (total - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
