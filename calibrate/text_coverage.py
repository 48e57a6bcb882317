"""How much of what the traffic (and the evaluation) has stands in the calibration set, dimension by dimension.

The score of a dimension is the share of the reference's conversations of whose features in it the set has every one, of
those that have any: a script that is in 12 % of the traffic and not in the set costs 0.12. Tokens count one by one, as
often as they occur. In a sample of `SMALL` conversations or more, features that only one conversation has do not count
in open-ended dimensions: nobody can calibrate for what does not come again. Where such features are most of what there
is (Good-Turing: their share estimates how much of the next conversation is new), the dimension is open, and measured
only.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibrate.features import DIMENSIONS, OPEN, Features, Profile
from calibrate.spec import MinScores

SMALL = 50
RECURRING = 0.5
SHOWN = 12
FILLERS = 3
QUANTILES = (0.5, 0.9, 0.99)
ORDER = ("COVERED", "THIN", "UNCOVERED")


def worst(verdicts: Iterable[str]) -> str:
    """The worst of some verdicts; COVERED of none."""
    return max(verdicts, key=ORDER.index, default="COVERED")


def verdict(score: float, threshold: float) -> str:
    """COVERED from the threshold on, THIN from half of it on, UNCOVERED below."""
    if score >= threshold:
        return "COVERED"
    return "THIN" if score >= threshold / 2 else "UNCOVERED"


def wanted(reference: Profile, dimension: str) -> tuple[Counter[str], bool]:
    """(what the reference asks for with its weight, whether the dimension is open-ended in it)."""
    weights = reference.weights(dimension)
    if dimension not in OPEN or reference.conversations < SMALL:
        return weights, False
    having = reference.having[dimension]
    recurring = Counter({name: n for name, n in weights.items() if having[name] > 1})
    return recurring, recurring.total() < RECURRING * weights.total()


def gaps(reference: Profile, dimension: str, have: Profile) -> list[tuple[frozenset[str], float]]:
    """What the set lacks of each part of the reference that it does not cover, with that part's share. The shares add
    up to what the score is below 1."""
    asked, _ = wanted(reference, dimension)
    had = have.having[dimension].keys()
    parts = [(features & asked.keys(), n) for features, n in reference.units(dimension)]
    total = sum(n for features, n in parts if features)
    return [(features - had, n / total) for features, n in parts if features - had]


def measure_text(spec: MinScores, references: Mapping[str, Profile], have: Profile) -> dict[str, Any]:
    """coverage.json's `text`: for each dimension {score, threshold, verdict, missing, open, against}.

    The score is the lowest against any reference. `missing` is what is not in the set, the most frequent first:
    {name, share, against}. A dimension that no reference has anything of is left out.
    """
    report: dict[str, Any] = {}
    for dimension in DIMENSIONS:
        against: dict[str, float] = {}
        missing: list[dict[str, Any]] = []
        opened = []
        for name, reference in references.items():
            asked, is_open = wanted(reference, dimension)
            if not asked or (dimension == "kinds" and not have.having["kinds"]):
                # Sources without kinds cannot be compared by kind.
                continue
            lacked = gaps(reference, dimension, have)
            against[name] = max(0.0, 1 - math.fsum(share for _, share in lacked))
            opened.append(is_open)
            shares: defaultdict[str, float] = defaultdict(float)
            for features, share in lacked:
                for feature in features:
                    shares[feature] += share
            missing += [{"name": f, "share": share, "against": name} for f, share in shares.items()]
        if not against:
            continue
        score, is_open = min(against.values()), any(opened)
        threshold = getattr(spec, dimension)
        if is_open and dimension not in spec.model_fields_set:
            threshold = 0.0
        missing.sort(key=lambda m: (-m["share"], m["name"]))
        report[dimension] = {
            "score": round(score, 4),
            "threshold": threshold,
            "verdict": verdict(score, threshold),
            "missing": missing[:SHOWN],
            "missing_count": len(missing),
            "open": is_open,
            "against": {name: round(value, 4) for name, value in against.items()},
        }
    for dimension in ("prompt_length", "output_length"):
        if dimension in report:
            sides = {**references, "set": have}
            report[dimension]["quantiles"] = {n: quantiles(_lengths(p, dimension)) for n, p in sides.items()}
    return report


def _lengths(profile: Profile, dimension: str) -> list[int]:
    return profile.prompt_lengths if dimension == "prompt_length" else profile.output_lengths


def quantiles(lengths: Sequence[int]) -> dict[str, int] | None:
    """p50, p90, p99 and the longest; None of nothing."""
    if not lengths:
        return None
    ordered = sorted(lengths)
    found = {f"p{round(100 * q)}": ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in QUANTILES}
    return {**found, "max": ordered[-1]}


def lacking(report: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions whose verdict is not COVERED."""
    return {name: found for name, found in report.items() if found["verdict"] != "COVERED"}


def name_fillers(report: Mapping[str, Any], pool: Iterable[tuple[str, Features]]) -> None:
    """Say of each missing feature how many conversations of the sources have it (`in_pool`) and which (`items`)."""
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for dimension, found in report.items():
        for entry in found["missing"]:
            entry["in_pool"], entry["items"] = 0, []
            places.setdefault((dimension, entry["name"]), []).append(entry)
    dimensions = {dimension for dimension, _ in places}
    for name, features in pool:
        for dimension in dimensions:
            for feature in features[dimension]:
                for entry in places.get((dimension, feature), ()):
                    entry["in_pool"] += 1
                    if len(entry["items"]) < FILLERS:
                        entry["items"].append(name)
