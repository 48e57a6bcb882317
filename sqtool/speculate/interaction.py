"""What each arm gains over the baseline, whether the two gains multiply, and what an A/A pair gains by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqtool.speculate import cost
from sqtool.speculate.frame import Frame
from sqtool.speculate.latency import effective_size, requests_needed
from sqtool.speculate.missing import Missing
from sqtool.speculate.resample import Floats, Interval, Resamples, interval

CONTROL = "baseline_again"
GAINS = {"quantization": "quantized", "speculation": "speculative", "both": "both"}
"""Name of a gain -> the arm whose gain over the baseline it is."""


@dataclass(frozen=True)
class Figure:
    """A measure of one arm where more is better: its value, its replicates [R], and the requests behind it.

    `interval` false: there is a value and too few requests that far out for an interval.
    """

    value: float
    replicates: Floats
    units: int
    has_interval: bool = True


Measure = Callable[[Frame, Resamples], Figure | None]


def _quantile(time: str, probability: float) -> Measure:
    def measure(frame: Frame, resamples: Resamples) -> Figure | None:
        there = ~np.isnan(frame.times[time])
        values, unit = frame.times[time][there], frame.unit[there]
        if not len(values):
            return None
        point = float(np.quantile(values, probability))
        if not point > 0:
            return None
        enough = effective_size(values, unit, probability) >= requests_needed(probability)
        return Figure(1 / point, 1 / resamples.quantiles(unit, values, probability), len(np.unique(unit)), enough)

    return measure


def _rate(numerator: Callable[[Frame], Floats], *, inside: bool = False) -> Measure:
    """`inside`: counts what lies inside the SLO, which may vary between requests at any load."""

    def measure(frame: Frame, resamples: Resamples) -> Figure | None:
        above = numerator(frame)
        if not above.sum():
            return None
        value = float(above.sum() / frame.seconds.sum())
        replicates = resamples.ratio(frame.unit, above, frame.seconds)
        # In an open loop the arrivals set the time of a whole run, and resampling requests says nothing about it.
        varies = inside and above.min() < above.max()
        return Figure(value, replicates, frame.units, varies or not frame.open_loop)

    return measure


def _economy(frame: Frame, resamples: Resamples) -> Figure | None:
    """Accepted answers per device second: the price cancels in a comparison of arms on the same device."""
    seconds, good, unit, reason = cost.parts(frame)
    if reason:
        return None
    replicates = resamples.ratio(unit, good, seconds)
    # As for throughput: where the arrivals set the time, equal answers would give an interval of no width.
    return Figure(float(good.sum() / seconds.sum()), replicates, len(np.unique(unit)), not frame.open_loop)


LATENCIES: dict[str, Measure] = {
    "ttft_p50": _quantile("ttft", 0.5),
    "tpot_p50": _quantile("tpot", 0.5),
    "e2e_p50": _quantile("e2e", 0.5),
    "ttft_p95": _quantile("ttft", 0.95),
    "tpot_p95": _quantile("tpot", 0.95),
    "e2e_p95": _quantile("e2e", 0.95),
    "e2e_p99": _quantile("e2e", 0.99),
}
"""Over requests that every compared arm answered."""
RATES: dict[str, Measure] = {
    "output_tokens_per_s": _rate(lambda frame: frame.tokens),
    "goodput": _rate(lambda frame: frame.within.astype(np.float64), inside=True),
    "cost_per_accepted_answer": _economy,
}
"""Over all requests: a failed one took time and gave nothing."""


def gain(better: Figure, base: Figure) -> dict[str, Any]:
    """better / base with its paired interval; above 1 is better than the base."""
    return {"gain": better.value / base.value, "ci": _interval(better.replicates / base.replicates, better, base)}


def _interval(replicates: Floats, *figures: Figure) -> Interval:
    if not all(figure.has_interval for figure in figures):
        return None
    return interval(replicates, min(figure.units for figure in figures))


def figures(frames: Mapping[str, Frame], resamples: Resamples, *, slo: bool) -> dict[str, dict[str, Figure]]:
    """measure -> arm -> figure. `slo` false leaves goodput out, which would be throughput again."""
    common = common_rows(frames)
    result = {name: _each(measure, common, resamples) for name, measure in LATENCIES.items()}
    for name, measure in RATES.items():
        if slo or name != "goodput":
            result[name] = _each(measure, frames, resamples)
    return result


def _each(measure: Measure, frames: Mapping[str, Frame], resamples: Resamples) -> dict[str, Figure]:
    found = {arm: measure(frame, resamples) for arm, frame in frames.items()}
    return {arm: figure for arm, figure in found.items() if figure is not None}


def common_rows(frames: Mapping[str, Frame]) -> dict[str, Frame]:
    """Each frame with only the requests (id and round) that every one of them answered."""
    answered = [{(row.id, row.round) for row in frame.rows if row.ok} for frame in frames.values()]
    common = set.intersection(*answered) if answered else set()
    return {
        arm: frame.only(np.array([(row.id, row.round) in common for row in frame.rows], dtype=bool))
        for arm, frame in frames.items()
    }


def interaction(
    frames: Mapping[str, Frame], siblings: Mapping[str, str], resamples: Resamples, *, slo: bool, missing: Missing
) -> dict[str, Any]:
    """The entry of one load: for each measure, gains over the baseline and the ratio of `both` to their product.

    `ratio` = gain of both / (gain of quantization x gain of speculation): 1 when the two do not touch each other. All
    four values of a resample come from the same requests. `others` has the gains of further arms over the baseline, and
    `over_plain` of each speculating arm over the arm with the same target and no speculation.
    """
    if "baseline" not in frames:
        return {}
    load = frames["baseline"].load
    chosen = {arm: frame for arm, frame in frames.items() if arm != CONTROL}
    result: dict[str, Any] = {}
    for name, arms in figures(chosen, resamples, slo=slo).items():
        base = arms.get("baseline")
        if base is None:
            missing.add(f"gain in {name}", "the baseline arm does not have this measure", load=load)
            continue
        if not base.has_interval:
            missing.add(f"interval of the gain in {name}", _why(name), load=load)
        nothing = {"gain": None, "ci": None}
        entry: dict[str, Any] = {
            label: gain(arms[arm], base) if arm in arms else dict(nothing) for label, arm in GAINS.items()
        }
        for label, arm in GAINS.items():
            if arm in frames and arm not in arms:
                missing.add(f"gain of {label} in {name}", "this arm does not have the measure", arm=arm, load=load)
        known = all(arm in arms for arm in GAINS.values())
        product = entry["quantization"]["gain"] * entry["speculation"]["gain"] if known else None
        entry["product"] = product
        entry["ratio"] = ratio_of_ratios(arms) if known else {"value": None, "ci": None}
        extra = [arm for arm in arms if arm != "baseline" and arm not in GAINS.values()]
        entry["others"] = {arm: gain(arms[arm], base) for arm in extra}
        entry["over_plain"] = {
            arm: {"against": plain, **gain(arms[arm], arms[plain])}
            for arm, plain in siblings.items()
            if arm in arms and plain in arms
        }
        result[name] = entry
    return result


def ratio_of_ratios(arms: Mapping[str, Figure]) -> dict[str, Any]:
    """both x baseline / (quantized x speculative) with its interval; `arms` has the figures of all four."""
    base, quantized, full, both = (arms[arm] for arm in ("baseline", *GAINS.values()))
    values = both.value * base.value / (quantized.value * full.value)
    replicates = both.replicates * base.replicates / (quantized.replicates * full.replicates)
    return {"value": values, "ci": _interval(replicates, base, quantized, full, both)}


def _why(name: str) -> str:
    """Why the gain in this measure has no interval."""
    if name in RATES:
        return "in an open loop the arrivals set the time of a whole run"
    needed = requests_needed(int(name.rsplit("p", 1)[1]) / 100)
    return f"too few distinct requests; {needed} are needed"


def control(frames: Mapping[str, Frame], resamples: Resamples, *, slo: bool) -> dict[str, Any]:
    """baseline_again over baseline for each measure: what differs between two runs of one configuration.

    `steady` is false where the interval excludes 1: the machine changed between the two by more than the sample of
    requests explains, and intervals over requests are too narrow by as much. None where there is no interval.
    """
    if CONTROL not in frames or "baseline" not in frames:
        return {}
    pair = {arm: frames[arm] for arm in ("baseline", CONTROL)}
    found = figures(pair, resamples, slo=slo)
    result = {name: gain(arms[CONTROL], arms["baseline"]) for name, arms in found.items() if len(arms) == 2}
    for entry in result.values():
        ends = entry["ci"]
        entry["steady"] = None if ends is None else bool(ends[0] <= 1 <= ends[1])
    return result
