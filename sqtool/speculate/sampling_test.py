"""Do sampled answers come from the same distribution with speculation and without? A permutation test.

Speculative sampling is meant to leave the target's distribution as it is. The test asks each of several prompts several
times in both arms. Under that hypothesis the answers to one prompt are exchangeable between the arms, so exchanging
them at random, within each prompt, gives the statistic's own null distribution: the test's size is exact at every
number of prompts and samples, and answers to different prompts are never compared.

The statistic is the energy statistic (Szekely and Rizzo 2013, J. Statistical Planning and Inference 143:1249-1272)
summed over prompts. Two answers are as far apart as the share of prefixes (their first 1, 2, 4, ... words, and the
whole answer) in which they differ. Each such prefix is a category, so the sum grows with a difference in the first word
as with one that shows only at the end, also where no two whole answers are equal.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sqtool.speculate.interaction import CONTROL
from sqtool.speculate.missing import Missing
from sqtool.speculate.reading import Drawn, Stage
from sqtool.speculate.resample import Floats

PERMUTATIONS = 4999
TEST = "energy statistic over prefixes, permuted within prompts"
_WORD = re.compile(r"\w+|[^\w\s]")


def sampling(stage: Stage, *, seed: int, missing: Missing) -> dict[str, Any] | None:
    """`sampling` of speculate.json: "arm/other" -> {p_value, p_holm, test, ...}; None where nothing was sampled.

    Each speculating arm against the arm with the same target without speculation, and the A/A pair, whose p-value shows
    that nothing but speculation is found. `p_holm` is adjusted (Holm 1979) over the speculating pairs.
    """
    if not any(arm.drawn for arm in stage.arms.values()):
        return None
    pairs = [(name, other) for name in stage.arms if (other := stage.sibling(name)) is not None]
    if CONTROL in stage.arms and "baseline" in stage.arms:
        pairs.append((CONTROL, "baseline"))
    result: dict[str, Any] = {}
    for name, other in pairs:
        first, second = _by_prompt(stage.arms[name].drawn), _by_prompt(stage.arms[other].drawn)
        prompts = [p for p in sorted(first.keys() & second.keys()) if len(first[p]) > 1 and len(second[p]) > 1]
        if not prompts:
            reason = f"needs two samples or more of the same prompt in {name} and in {other}"
            missing.add("sampling distribution test", reason, arm=name)
            continue
        one, two = ([side[p] for p in prompts] for side in (first, second))
        p_value, statistic, each = two_sample(one, two, seed=seed)
        furthest = [prompts[at] for at in np.argsort(-each, kind="stable")[:3]]
        result[f"{name}/{other}"] = {
            "test": TEST,
            "prompts": len(prompts),
            "samples": [sum(map(len, one)), sum(map(len, two))],
            "statistic": statistic,
            "permutations": PERMUTATIONS,
            "p_value": p_value,
            "furthest": furthest,
        }
    _holm([entry for key, entry in result.items() if not key.startswith(f"{CONTROL}/")])
    return result or None


def two_sample(
    first: Sequence[Sequence[Hashable]],
    second: Sequence[Sequence[Hashable]],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> tuple[float, float, Floats]:
    """(p-value, statistic, statistic per prompt). `first[i]` and `second[i]` are the answers to prompt i, as words.

    An answer is a tuple of words (or any tuple); p = (1 + permuted statistics at least as large) / (1 + permutations).
    """
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 7203])
    observed = np.zeros(len(first))
    permuted = np.zeros(permutations)
    for at, (one, two) in enumerate(zip(first, second, strict=True)):
        distances = _distances([*one, *two])
        signs = np.concatenate([np.full(len(one), 1 / len(one)), np.full(len(two), -1 / len(two))])
        observed[at] = -signs @ distances @ signs
        shuffled = rng.permuted(np.tile(signs, (permutations, 1)), axis=1)
        permuted -= np.einsum("pi,pi->p", shuffled @ distances, shuffled)
    total = float(observed.sum())
    # Equal arrangements add up in another order; rounding must not make one of them smaller.
    reached = int((permuted >= total - 1e-9 * max(1.0, abs(total))).sum())
    return (1 + reached) / (1 + permutations), total, observed


def _distances(answers: Sequence[Any]) -> Floats:
    """[n, n] shares of prefix lengths at which two answers differ."""
    longest = max(len(answer) for answer in answers)
    lengths = [2**k for k in range(longest.bit_length()) if 2**k < longest]
    levels = [[answer[:size] for answer in answers] for size in lengths] + [list(answers)]
    total = np.zeros((len(answers), len(answers)))
    for level in levels:
        numbers: dict[Any, int] = {}
        codes = np.array([numbers.setdefault(prefix, len(numbers)) for prefix in level])
        total += codes[:, None] != codes[None, :]
    return total / len(levels)


def words(said: tuple[str, tuple[tuple[str, str], ...]]) -> tuple[str, ...]:
    """An answer as words and marks: its text, then its tool calls."""
    text, calls = said
    return tuple(_WORD.findall(text) + (_WORD.findall(json.dumps(calls)) if calls else []))


def _by_prompt(drawn: Sequence[Drawn]) -> Mapping[str, list[tuple[str, ...]]]:
    result: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for one in sorted(drawn, key=lambda d: (d.id, d.sample)):
        result[one.id].append(words(one.said))
    return result


def _holm(entries: list[dict[str, Any]]) -> None:
    """Add `p_holm` to each entry."""
    worst = 0.0
    for rank, entry in enumerate(sorted(entries, key=lambda e: e["p_value"])):
        worst = max(worst, min(1.0, (len(entries) - rank) * entry["p_value"]))
        entry["p_holm"] = worst
