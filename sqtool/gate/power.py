"""How many items a decision takes, before anything expensive runs.

The model is one 0/1 metric with independent items. A share `discordance` of the items changes its answer, half of
them each way, even when nothing got worse; a true drop of `drop` adds that share of losses. Probabilities are exact
sums over the trinomial distribution of (gains, losses), not normal approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from sqtool.gate.exact import items_without_flips, probability, score
from sqtool.gate.intervals import Floats

DISCORDANCES = (0.01, 0.03, 0.10)
_LIMIT = 2**27


def passes(gains: Floats, losses: Floats, n: float, margin: float, alpha: float) -> NDArray[np.bool_]:
    """Whether Tango's lower bound is above -margin, elementwise (the bound itself need not be found for that).

    The gate's exact check can still say no to a result just at the edge; `items_without_flips` knows of it.
    """
    result: NDArray[np.bool_] = score(gains, losses, n, margin) > float(norm.ppf(1 - alpha))
    return result


@lru_cache(maxsize=4096)
def power_to_pass(n: int, margin: float, discordance: float, *, drop: float = 0.0, alpha: float = 0.05) -> float:
    """Probability that the metric passes. With drop = margin this is the false-accept rate."""
    if n < items_without_flips(margin, alpha):
        return 0.0

    def accepted(gains: Floats, losses: Floats) -> NDArray[np.bool_]:
        return passes(gains, losses, n, margin, alpha)

    return probability(n, discordance / 2, discordance / 2 + drop, accepted)


def power_to_refuse(
    n: int, margin: float, discordance: float, *, drop: float, alpha: float = 0.05, family: int = 1
) -> float:
    """Probability of REGRESSED at a true `drop`, at Holm's strictest step over `family` tests."""

    def refused(gains: Floats, losses: Floats) -> NDArray[np.bool_]:
        p_value = np.where(gains + losses > 0, binom.cdf(gains, gains + losses, 0.5), 1.0)
        result: NDArray[np.bool_] = (p_value <= alpha / family) & (gains - losses <= -margin * n)
        return result

    return 1.0 - probability(n, discordance / 2, discordance / 2 + drop, lambda g, k: ~refused(g, k))


@lru_cache(maxsize=1024)
def items_needed(
    margin: float, discordance: float, *, drop: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Items for passing with probability `power` at a true `drop` < margin; None beyond 10^8."""
    if drop >= margin:
        return None
    return _first(lambda n: power_to_pass(n, margin, discordance, drop=drop, alpha=alpha) >= power)


@lru_cache(maxsize=1024)
def minimum_detectable_drop(
    n: int, margin: float, discordance: float, *, power: float = 0.8, alpha: float = 0.05, family: int = 1
) -> float | None:
    """Smallest true drop that is REGRESSED with probability `power`, to 1e-4; None when even a total loss is not."""
    low, high = 0.0, 1.0 - discordance

    def caught(drop: float) -> bool:
        return power_to_refuse(n, margin, discordance, drop=drop, alpha=alpha, family=family) >= power

    if not caught(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if caught(middle) else (middle, high)
    return high


def smallest_margin(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest margin, to 1e-4, that an unchanged candidate passes with probability `power` on n items."""
    low, high = 0.0, 1.0 - 1e-6
    if power_to_pass(n, high, discordance, alpha=alpha) < power:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if power_to_pass(n, middle, discordance, alpha=alpha) >= power else (middle, high)
    return high


@dataclass(frozen=True)
class PlanRow:
    """One metric at one discordance. Probabilities and drops are shares of 1; None: not reachable.

    `power_to_pass` is for a candidate that did not change for the worse, `detectable_drop` is REGRESSED with the
    plan's power, and on `items_for_power` items an unchanged candidate passes with that power.
    """

    metric: str
    items: int
    margin: float
    alpha: float
    discordance: float
    power_to_pass: float
    detectable_drop: float | None
    items_for_power: int | None


@dataclass(frozen=True)
class GatePower:
    """The plan of a whole gate. `all_pass[discordance]` is (lower bound, value if metrics were independent) of the
    probability that every metric passes when nothing changed."""

    rows: tuple[PlanRow, ...]
    all_pass: dict[float, tuple[float, float]]
    power: float

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "power": self.power,
            "rows": [asdict(row) for row in self.rows],
            "all_pass": [
                {"discordance": d, "at_least": low, "if_independent": free} for d, (low, free) in self.all_pass.items()
            ],
        }


def plan_gate(
    margins: Mapping[str, float],
    items: Mapping[str, int],
    *,
    discordances: Sequence[float] = DISCORDANCES,
    power: float = 0.8,
    alpha: float | Mapping[str, float] = 0.05,
    harm_alpha: float | None = None,
    family: int | None = None,
    min_items: Mapping[str, int] | None = None,
) -> GatePower:
    """What a gate with these absolute margins can decide on so many items of each metric.

    `alpha` is one for all metrics or each one's own; refusals share `harm_alpha` (default: `alpha`). `family` counts
    the harm tests that Holm adjusts over (default: one a metric). With fewer items than `min_items` none passes.
    """
    family = len(margins) if family is None else family
    rows = []
    all_pass = {}
    for discordance in discordances:
        found = [
            plan_row(
                metric,
                items[metric],
                margin,
                discordance,
                power=power,
                alpha=alpha[metric] if isinstance(alpha, Mapping) else alpha,
                harm_alpha=harm_alpha,
                family=family,
                min_items=(min_items or {}).get(metric, 1),
            )
            for metric, margin in margins.items()
        ]
        rows += found
        all_pass[discordance] = joint([row.power_to_pass for row in found])
    return GatePower(tuple(rows), all_pass, power)


def plan_row(
    metric: str,
    items: int,
    margin: float,
    discordance: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    harm_alpha: float | None = None,
    family: int = 1,
    min_items: int = 1,
) -> PlanRow:
    """What one metric can decide; refusals are tested at `harm_alpha` (default: `alpha`)."""
    enough = items >= min_items
    chance = power_to_pass(items, margin, discordance, alpha=alpha) if enough else 0.0
    level = alpha if harm_alpha is None else harm_alpha
    detectable = minimum_detectable_drop(items, margin, discordance, power=power, alpha=level, family=family)
    needed = items_needed(margin, discordance, power=power, alpha=alpha)
    needed = None if needed is None else max(needed, min_items)
    return PlanRow(metric, items, margin, alpha, discordance, chance, detectable, needed)


def joint(chances: Sequence[float]) -> tuple[float, float]:
    """(lower bound whatever the dependence, value under independence) of the probability that all events happen."""
    return max(0.0, 1 - sum(1 - chance for chance in chances)), math.prod(chances)


def _first(holds: Callable[[int], bool]) -> int | None:
    """Smallest n where `holds`, by doubling and bisection (power is a slightly jagged function of n)."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _LIMIT:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
