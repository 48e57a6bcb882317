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


def power_to_pass(n: int, margin: float, discordance: float, *, drop: float = 0.0, alpha: float = 0.05) -> float:
    """Probability that the metric passes. With drop = margin this is the false-accept rate."""

    def accepted(gains: Floats, losses: Floats) -> NDArray[np.bool_]:
        return passes(gains, losses, n, margin, alpha)

    return _probability(n, discordance, drop, accepted)


def power_to_refuse(
    n: int, margin: float, discordance: float, *, drop: float, alpha: float = 0.05, family: int = 1
) -> float:
    """Probability of REGRESSED at a true `drop`, at Holm's strictest step over `family` tests."""

    def refused(gains: Floats, losses: Floats) -> NDArray[np.bool_]:
        p_value = np.where(gains + losses > 0, binom.cdf(gains, gains + losses, 0.5), 1.0)
        result: NDArray[np.bool_] = (p_value <= alpha / family) & (gains - losses <= -margin * n)
        return result

    return 1.0 - _probability(n, discordance, drop, lambda g, k: ~refused(g, k))


def _probability(
    n: int, discordance: float, drop: float, accepted: Callable[[Floats, Floats], NDArray[np.bool_]]
) -> float:
    """P(accepted), where for each number of discordant pairs the accepted set is `losses <= some count`."""
    total = min(discordance + drop, 1.0)
    if total <= 0:
        return float(accepted(np.zeros(1), np.zeros(1))[0])
    share = min((discordance / 2 + drop) / total, 1.0)
    low, high = (int(binom.ppf(tail, n, total)) for tail in (1e-12, 1 - 1e-12))
    discordant = np.arange(low, high + 1, dtype=np.float64)
    # Bisect, for all discordant counts at once, for the most losses that are still accepted (-1: none).
    best, bad = np.full(len(discordant), -1.0), discordant + 1
    while np.any(bad - best > 1):
        middle = np.floor((best + bad) / 2)
        good = accepted(discordant - middle, middle) & (middle > best)
        best, bad = np.where(good, middle, best), np.where(good | (middle <= best), bad, middle)
    return float(np.sum(binom.pmf(discordant, n, total) * binom.cdf(best, discordant, share)))


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
