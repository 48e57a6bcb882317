"""How many items a decision takes, before anything expensive runs.

The model is one 0/1 metric with independent items. A share `discordance` of the items changes its answer, half of
them each way, even when nothing got worse; a true drop of `drop` adds that share of losses. Probabilities are exact
sums over the trinomial distribution of (gains, losses), not normal approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

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


def items_needed(
    margin: float, discordance: float, *, drop: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Items for passing with probability `power` at a true `drop` < margin; None beyond 10^8."""
    if drop >= margin:
        return None
    return _first(lambda n: power_to_pass(n, margin, discordance, drop=drop, alpha=alpha) >= power)


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
    """One metric at one assumed discordance. Probabilities and drops are shares of 1; None: not reachable."""

    metric: str
    items: int
    margin: float
    discordance: float
    power_to_pass: float
    detectable_drop: float | None
    items_for_power: int | None


@dataclass(frozen=True)
class GatePower:
    """The plan of a whole gate. `all_pass[discordance]` is (lower bound, value if metrics were independent) of the
    probability that every gated metric passes when nothing changed."""

    rows: tuple[PlanRow, ...]
    all_pass: dict[float, tuple[float, float]]
    power: float
    alpha: float

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return {
            "power": self.power,
            "alpha": self.alpha,
            "rows": [asdict(row) for row in self.rows],
            "all_pass": [
                {"discordance": d, "at_least": low, "if_independent": free} for d, (low, free) in self.all_pass.items()
            ],
        }


def plan_gate(
    margins: dict[str, float],
    items: dict[str, int],
    *,
    discordances: Sequence[float] = DISCORDANCES,
    power: float = 0.8,
    alpha: float = 0.05,
) -> GatePower:
    """What a gate with these absolute margins can decide on so many items of each metric."""
    rows = []
    all_pass = {}
    for discordance in discordances:
        chances = []
        for metric, margin in margins.items():
            n = items[metric]
            chance = power_to_pass(n, margin, discordance, alpha=alpha)
            chances.append(chance)
            detectable = minimum_detectable_drop(n, margin, discordance, power=power, alpha=alpha, family=len(margins))
            needed = items_needed(margin, discordance, power=power, alpha=alpha)
            rows.append(PlanRow(metric, n, margin, discordance, chance, detectable, needed))
        all_pass[discordance] = (max(0.0, 1 - sum(1 - chance for chance in chances)), math.prod(chances))
    return GatePower(tuple(rows), all_pass, power, alpha)


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
