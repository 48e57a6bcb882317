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

from sqtool.gate.intervals import Floats

DISCORDANCES = (0.01, 0.03, 0.10)
_LIMIT = 2**27


def passes(gains: Floats, losses: Floats, n: float, margin: float, alpha: float) -> NDArray[np.bool_]:
    """Whether Tango's lower bound is above -margin, elementwise (the bound itself need not be found for that)."""
    q = float(norm.ppf(1 - alpha))
    delta = -margin
    b = (2 * n - gains + losses) * delta - gains - losses
    c = -losses * delta * (1 - delta)
    loss_rate = (np.sqrt(np.maximum(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = np.maximum(2 * loss_rate + delta * (1 - delta), 0.0)
    distance = (gains - losses) / n - delta
    result: NDArray[np.bool_] = (distance > 0) & (n * distance**2 > q**2 * variance)
    return result


@lru_cache(maxsize=4096)
def power_to_pass(n: int, margin: float, discordance: float, *, drop: float = 0.0, alpha: float = 0.05) -> float:
    """Probability that the metric passes. With drop = margin this is the false-accept rate."""

    def most_losses(discordant: Floats) -> Floats:
        # Bisect, for all discordant counts at once, for the most losses that still pass (-1: none).
        best, bad = np.full(len(discordant), -1.0), discordant + 1
        while np.any(bad - best > 1):
            middle = np.floor((best + bad) / 2)
            good = passes(discordant - middle, middle, n, margin, alpha) & (middle > best)
            best, bad = np.where(good, middle, best), np.where(good | (middle <= best), bad, middle)
        return best

    return _probability(n, discordance, drop, most_losses)


def power_to_refuse(
    n: int, margin: float, discordance: float, *, drop: float, alpha: float = 0.05, family: int = 1
) -> float:
    """Probability of REGRESSED at a true `drop`, at Holm's strictest step over `family` tests."""
    level = alpha / family

    def most_losses(discordant: Floats) -> Floats:
        # The most gains at which McNemar's exact test rejects (-1: it cannot), and the fewest losses past the margin.
        gains = binom.ppf(level, discordant, 0.5)
        gains = np.where(binom.cdf(gains, discordant, 0.5) <= level, gains, gains - 1)
        beyond = np.ceil((discordant + margin * n) / 2)
        return np.maximum(np.where(discordant > 0, discordant - gains, 1.0), beyond) - 1

    return 1.0 - _probability(n, discordance, drop, most_losses)


def _probability(n: int, discordance: float, drop: float, most_losses: Callable[[Floats], Floats]) -> float:
    """P(losses <= most_losses(gains + losses)) when gains and losses are trinomial."""
    total = min(discordance + drop, 1.0)
    if total <= 0:
        return float(most_losses(np.zeros(1))[0] >= 0)
    share = min((discordance / 2 + drop) / total, 1.0)
    low, high = (int(binom.ppf(tail, n, total)) for tail in (1e-12, 1 - 1e-12))
    discordant = np.arange(low, high + 1, dtype=np.float64)
    most = np.minimum(most_losses(discordant), discordant)
    return float(np.sum(binom.pmf(discordant, n, total) * binom.cdf(most, discordant, share)))


@lru_cache(maxsize=1024)
def items_needed(
    margin: float, discordance: float, *, drop: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Items for passing with probability `power` at a true `drop` < margin; None beyond 10^8."""
    if drop >= margin:
        return None
    return _first(lambda n: power_to_pass(n, margin, discordance, drop=drop, alpha=alpha) >= power)


def items_without_flips(margin: float, alpha: float = 0.05) -> int:
    """Fewest items that can pass at all: with no changed answer the bound is -z^2 / (n + z^2)."""
    q = float(norm.ppf(1 - alpha)) ** 2
    return math.floor(q * (1 - margin) / margin) + 1


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
    family: int | None = None,
    min_items: Mapping[str, int] | None = None,
) -> GatePower:
    """What a gate with these absolute margins can decide on so many items of each metric.

    `alpha` is one for all metrics or each one's own. `family` counts the harm tests that Holm adjusts over (default:
    one a metric). A metric with fewer items than `min_items` never passes.
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
    family: int = 1,
    min_items: int = 1,
) -> PlanRow:
    """What one metric can decide."""
    enough = items >= min_items
    chance = power_to_pass(items, margin, discordance, alpha=alpha) if enough else 0.0
    detectable = minimum_detectable_drop(items, margin, discordance, power=power, alpha=alpha, family=family)
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
