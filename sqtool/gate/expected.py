"""What stopping early saves and costs, before anything is evaluated: outcomes and items asked, by simulation.

The model is that of `power`: one 0/1 metric, independent items, a share `discordance` of changed answers, half of them
each way, and a true drop of `drop` on top of the losses. The three ways to stop:

- `off`: every item is asked, the fixed tests decide at `alpha`.
- `regressed`: stops where the mixture shows the drop beyond the margin at `alpha_share * alpha / family`. Otherwise the
  fixed harm test decides at the last item with the other `1 - alpha_share` of alpha, and PASS is decided there alone,
  by the fixed interval at the whole of alpha: nobody stopped for it, so there is nothing to pay.
- `both`: also stops where the planned bets show a drop within the margin at `alpha`; at the last item the same
  sequence decides on PASS, never the fixed interval.

It looks where the evaluation does, after each batch. (A monitor also remembers the wealth within a batch, so this is
a hair pessimistic.) A gate of several metrics goes on until one is REGRESSED or all have passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from sqtool.gate.compare import Outcome
from sqtool.gate.intervals import Floats, Ints
from sqtool.gate.power import passes
from sqtool.gate.sequential import BETS, LARGEST_SHARE, REMAINING, mixed

EarlyStop = Literal["off", "regressed", "both"]
OUTCOMES: tuple[Outcome, ...] = ("PASS", "REGRESSED", "INCONCLUSIVE")
LOOK_EVERY = 32
_LOOKS = 512
_STEPS = 4096


@dataclass(frozen=True)
class Expected:
    """Chances of the outcomes, mean number of items asked, and that number given each outcome (None: never seen)."""

    mode: EarlyStop
    chance: dict[Outcome, float]
    items: float
    items_if: dict[Outcome, float | None]


@dataclass(frozen=True)
class Paths:
    """Simulated evaluations: `gains` and `losses` [draws, steps] in steps of `sizes` [steps] items; looks are taken
    after each `per_look` steps and at the end."""

    gains: Floats
    losses: Floats
    sizes: Ints
    per_look: int

    @property
    def ends(self) -> Ints:
        """Steps [looks] after which the evaluation looks."""
        steps = len(self.sizes)
        return np.append(np.arange(self.per_look, steps, self.per_look), steps)

    @property
    def asked(self) -> Ints:
        """Items asked up to each look, [looks]."""
        return np.cumsum(self.sizes)[self.ends - 1]


def draw_paths(
    rng: np.random.Generator, draws: int, n: int, discordance: float, drop: float, look_every: int, by_item: bool
) -> Paths:
    """Independent items; `by_item` where bets depend on each, otherwise a step is a look. Coarser beyond 4096 bets
    or 512 looks."""
    step = math.ceil(n / _STEPS) if by_item else look_every * math.ceil(n / look_every / _LOOKS)
    sizes = np.full(math.ceil(n / step), step)
    sizes[-1] = n - step * (len(sizes) - 1)
    gain, loss = discordance / 2, min(discordance / 2 + drop, 1.0 - discordance / 2)
    table = rng.multinomial(sizes, [gain, loss, 1 - gain - loss], size=(draws, len(sizes))).astype(np.float64)
    per_look = max(round(look_every / step), math.ceil(len(sizes) / _LOOKS)) if by_item else 1
    return Paths(table[..., 0], table[..., 1], sizes, per_look)


def harm_looks(paths: Paths, margin: float, target: float) -> Ints:
    """First look [draws] at which the mixture's log wealth against "the drop is within the margin" is at `target`;
    the number of looks where it never is."""
    grow = np.log1p(np.multiply.outer(-np.array([1.0, -1.0, 0.0]) - margin, BETS) / (1 + margin))
    first = np.full(len(paths.gains), len(paths.ends))
    gains, losses = np.cumsum(paths.gains, axis=1), np.cumsum(paths.losses, axis=1)
    for look, (end, asked) in enumerate(zip(paths.ends, paths.asked, strict=True)):
        # Where the estimate is within the margin no bet has gained anything, and once is enough.
        at = np.flatnonzero((first == len(paths.ends)) & (losses[:, end - 1] - gains[:, end - 1] > margin * asked))
        up, down = gains[at, end - 1], losses[at, end - 1]
        wealth = mixed(np.stack((up, down, asked - up - down), axis=1) @ grow)
        first[at[wealth >= target]] = look
    return first


def pass_looks(paths: Paths, margin: float, alpha: float) -> Ints:
    """First look [draws] at or before which the planned bets against "the drop is the margin or more" reached
    1/alpha; the number of looks where they never did."""
    reach, target = 1 - margin, math.log(1 / alpha)
    up, down, same = (1 + margin) / reach, -1.0, margin / reach
    draws, horizon, count = len(paths.gains), int(paths.sizes.sum()), 0
    wealth, square, first = np.zeros(draws), np.ones(draws), np.full(draws, len(paths.ends))
    for step, size in enumerate(paths.sizes.tolist()):
        gains, losses = paths.gains[:, step], paths.losses[:, step]
        left = (horizon - count) * square / (count + 1)
        share = np.minimum(np.sqrt(2 * np.maximum(target - wealth, REMAINING) / left), LARGEST_SHARE)
        rest = size - gains - losses
        wealth += gains * np.log1p(share * up) + losses * np.log1p(share * down) + rest * np.log1p(share * same)
        square += gains * up**2 + losses * down**2 + rest * same**2
        count += size
        first = np.where(wealth >= target, np.minimum(first, step // paths.per_look), first)
    return first


def expected(
    margin: float,
    n: int,
    mode: EarlyStop,
    discordance: float,
    drop: float = 0.0,
    alpha: float = 0.05,
    alpha_share: float = 0.2,
    look_every: int = LOOK_EVERY,
    *,
    seed: int = 0,
    draws: int = 2000,
    family: int = 1,
) -> Expected:
    """Simulate one metric with an absolute margin among `family` gated ones; equal arguments give equal results.

    With 2000 draws a chance is known to about one point.
    """
    batch = n if mode == "off" else look_every
    paths = draw_paths(np.random.default_rng(seed), draws, n, discordance, drop, batch, by_item=mode == "both")
    outcome, asked = decide_paths(paths, margin, mode, alpha, alpha_share, family)
    where = {name: outcome == place for place, name in enumerate(OUTCOMES)}
    return Expected(
        mode,
        {name: float(hits.mean()) for name, hits in where.items()},
        float(asked.mean()),
        {name: float(asked[hits].mean()) if hits.any() else None for name, hits in where.items()},
    )


def decide_paths(
    paths: Paths, margin: float, mode: EarlyStop, alpha: float, alpha_share: float, family: int
) -> tuple[Ints, Ints]:
    """(place in OUTCOMES, items asked), each [draws], of evaluations that gate this one metric."""
    draws, asked, never = len(paths.gains), paths.asked, len(paths.ends)
    gains, losses = paths.gains.sum(axis=1), paths.losses.sum(axis=1)
    n = int(asked[-1])
    fixed_alpha = alpha if mode == "off" else alpha * (1 - alpha_share)
    harmed = passed = np.full(draws, never)
    if mode != "off":
        harmed = harm_looks(paths, margin, math.log(family / (alpha * alpha_share)))
    if mode == "both":
        passed = pass_looks(paths, margin, alpha)
        fixed_pass = np.zeros(draws, dtype=np.bool_)
    else:
        fixed_pass = passes(gains, losses, n, margin, alpha)
    outcome = np.where(fixed_pass | (passed < harmed), OUTCOMES.index("PASS"), OUTCOMES.index("INCONCLUSIVE"))
    # Whoever reaches the last look is also tested for harm there, and harm goes first as everywhere in the gate.
    at_end = np.minimum(harmed, passed) >= never - 1
    harm = fixed_harm(gains, losses, n, margin, fixed_alpha / family)
    outcome[(at_end & harm) | ((harmed <= passed) & (harmed < never))] = OUTCOMES.index("REGRESSED")
    return outcome, asked[np.minimum(np.minimum(harmed, passed), never - 1)]


def fixed_harm(gains: Floats, losses: Floats, n: int, margin: float, alpha: float) -> NDArray[np.bool_]:
    """McNemar's exact test at `alpha` together with an estimate at or past the margin, elementwise."""
    p_value = np.where(gains + losses > 0, binom.cdf(gains, gains + losses, 0.5), 1.0)
    result: NDArray[np.bool_] = (p_value <= alpha) & (gains - losses <= -margin * n)
    return result
