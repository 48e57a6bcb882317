"""Choosing what covers best: greedy maximization of a feature-based submodular function, lazily evaluated.

For a set S with c_f conversations that have feature f, and p_f the feature's share of its dimension in the traffic, the
value is sum_f p_f log(1 + c_f): each further conversation of a kind adds less, so rare features get their turn, and the
best set's proportions are the traffic's (maximizing sum p log c is minimizing the Kullback-Leibler divergence of the
set's proportions from p). Where all cost the same, greedy choice is within 1 - 1/e of the best (Nemhauser, Wolsey,
Fisher 1978); gains only shrink, so stale ones are upper bounds and few need computing anew (Minoux 1978). The function
is that of Wei, Liu, Kirchhoff, Bilmes, "Unsupervised submodular subset selection for speech data" (2014).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from calibrate.features import DIMENSIONS, Features, Profile
from calibrate.text_coverage import wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weights = Mapping[tuple[str, str], float]
FLOOR = 1000.0
"""What a conversation is worth that brings a feature nearer to its floor: more than all else together."""


def traffic_weights(profile: Profile) -> dict[tuple[str, str], float]:
    """The share of each feature in its dimension; every dimension weighs the same, open-ended ones nothing."""
    made: dict[tuple[str, str], float] = {}
    for dimension in DIMENSIONS:
        asked, is_open = wanted(profile, dimension)
        if not is_open:
            made.update({(dimension, feature): n / asked.total() for feature, n in asked.items()})
    return made


def cover(
    candidates: Iterable[Features],
    weights: Weights,
    *,
    costs: Sequence[float],
    budgets: Sequence[float],
    groups: Sequence[int],
    floors: Mapping[tuple[str, str], int] | None = None,
    value: Literal["log", "once"] = "log",
) -> list[int]:
    """Places of the candidates chosen, in the order of choice.

    `groups[i]` is the source of candidate i, and each source's choice costs at most its entry of `budgets`; what costs
    more than is left is passed over. `floors` are features of which so many are to be had before anything else. With
    the value `once` a feature counts the first time only, and the choice ends when nothing is left to gain.
    """
    import numpy as np

    named = list(dict.fromkeys([*weights, *(floors or ())]))
    number = {feature: place for place, feature in enumerate(named)}
    weight = np.array([weights.get(feature, 0.0) for feature in named])
    floor = np.array([(floors or {}).get(feature, 0) for feature in named])
    counts = np.zeros(len(named))
    held = [_places(features, number) for features in candidates]

    def gain(place: int) -> float:
        at = held[place]
        if value == "once":
            return float(weight[at][counts[at] == 0].sum())
        short = np.count_nonzero(counts[at] < floor[at])
        return FLOOR * short + float((weight[at] * np.log1p(1 / (counts[at] + 1))).sum())

    left = list(budgets)
    # By gain for what it costs; ties go to the earlier candidate.
    heap = [(-gain(place) / costs[place], place) for place in range(len(held))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap:
        _, place = heapq.heappop(heap)
        if costs[place] > left[groups[place]]:
            continue
        now = (-gain(place) / costs[place], place)
        if value == "once" and not now[0]:
            continue
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        chosen.append(place)
        left[groups[place]] -= costs[place]
        counts[held[place]] += 1
    return chosen


def _places(features: Features, number: Mapping[tuple[str, str], int]) -> NDArray[np.int32]:
    import numpy as np

    found = [number[d, f] for d, values in features.items() for f in values if (d, f) in number]
    return np.array(sorted(found), dtype=np.int32)
