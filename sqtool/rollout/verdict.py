"""HARM, NO_HARM or KEEP_WATCHING for each metric and arm, true to its error rate whenever and however often one looks.

- HARM: "the candidate's rate is no worse than the baseline's" is rejected, and the difference seen is at or past the
  margin. The p-values of all metrics and candidate arms are adjusted together by Holm's method (Holm 1979). An
  anytime-valid p-value never rises and is a p-value in the limit, so what Holm rejects at any time it also rejects in
  the limit: the chance that a harmless rollout is *ever* called HARM on anything is at most alpha.
- NO_HARM: "the rate is worse by the margin or more" is rejected at alpha / candidate arms. An arm is NO_HARM when all
  of its metrics are: an intersection-union test, which needs no correction over metrics. The chance that any arm that
  is worse by a margin is ever called NO_HARM is at most alpha.
- KEEP_WATCHING: neither yet.

The family is fixed by the rules, not by what the log shows: a metric without data counts in it. An arm that joins later
makes it larger from then on, unless the rules say how many `candidates` there will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqtool.gate.multiplicity import holm
from sqtool.rollout.compare import Comparison, Evidence
from sqtool.rollout.rules import Metric
from sqtool.rollout.units import Unit

Outcome = Literal["HARM", "NO_HARM", "KEEP_WATCHING"]


ONLY_TRUE = "the log says only where it happened, so there is no rate to compare"


@dataclass(frozen=True)
class MetricVerdict:
    """One metric of one candidate arm. `evidence` speaks of the bad event; `p_adjusted` is Holm's."""

    metric: Metric
    outcome: Outcome
    reason: str
    evidence: Evidence
    p_adjusted: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Rates, change and interval are of the metric as it is named: acceptance counts what is good."""
        e = self.evidence
        lower, upper, change = e.lower, e.upper, e.difference
        baseline, candidate = e.baseline, e.candidate
        if self.metric.good:
            lower, upper = -upper, -lower
            baseline, candidate = (None if rate is None else 1 - rate for rate in (baseline, candidate))
            change = None if change is None else -change
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "baseline": baseline,
            "candidate": candidate,
            "change": change,
            "interval": [lower, upper],
            "margin": self.metric.margin,
            "worse_is": "lower" if self.metric.good else "higher",
            "limit_ms": self.metric.limit,
            "matched": e.terms,
            "p_harm": e.p_harm,
            "p_harm_adjusted": self.p_adjusted,
            "p_no_harm": e.p_no_harm,
        }


@dataclass(frozen=True)
class ArmVerdict:
    """One candidate arm: HARM when any metric is, NO_HARM when all are."""

    arm: str
    outcome: Outcome
    metrics: tuple[MetricVerdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"outcome": self.outcome, "metrics": {v.metric.name: v.to_dict() for v in self.metrics}}


class Watch:
    """All comparisons of a rollout: feed units in the order in which they complete, judge at any time."""

    def __init__(self, metrics: Sequence[Metric], baseline: str) -> None:
        self.metrics = tuple(metrics)
        self._baseline = baseline
        self._arms: dict[str, tuple[Comparison, ...]] = {}
        self.units: dict[str, int] = {}
        """Complete units of each arm."""

    def add(self, unit: Unit) -> None:
        """The next unit. Units of the baseline go to every candidate that has appeared."""
        self.units[unit.arm] = self.units.get(unit.arm, 0) + 1
        candidate = unit.arm != self._baseline
        if candidate and unit.arm not in self._arms:
            self._arms[unit.arm] = tuple(Comparison(metric.margin) for metric in self.metrics)
        for place, value in enumerate(unit.values):
            if value is None:
                continue
            for comparisons in (self._arms[unit.arm],) if candidate else self._arms.values():
                comparisons[place].add(candidate, value)

    def judge(
        self,
        arms: Sequence[str],
        alpha: float,
        candidates: int | None = None,
        *,
        known: Sequence[bool] | None = None,
        only_true: Sequence[bool] = (),
    ) -> list[ArmVerdict]:
        """The verdicts on these candidate arms (one without a complete unit is undecided).

        `known` says for each metric whether the log has any data on it; without, it is left out unless named.
        `only_true` says whether the log has its flag only where it is true. Every rate is the same then, whatever
        happened, and nothing may be concluded: such a metric is left out, or undecided where it is named.
        """
        number = max(len(arms), candidates or 0)
        tests = number * len(self.metrics)
        empty = tuple(Comparison(metric.margin) for metric in self.metrics)
        evidence = {
            arm: [c.evidence(alpha / tests, alpha / number) for c in self._arms.get(arm, empty)] for arm in arms
        }
        p_values = [e.p_harm for arm in arms for e in evidence[arm]]
        # What is declared and not seen yet has shown nothing.
        adjusted = iter(holm(p_values + [1.0] * (tests - len(p_values))))
        verdicts = []
        for arm in arms:
            found = []
            for place, metric in enumerate(self.metrics):
                p_adjusted, e = next(adjusted), evidence[arm][place]
                if place < len(only_true) and only_true[place]:
                    if metric.named:
                        found.append(MetricVerdict(metric, "KEEP_WATCHING", ONLY_TRUE, e, p_adjusted))
                elif known is None or known[place] or metric.named:
                    found.append(_metric_verdict(metric, e, p_adjusted, alpha, alpha / number))
            verdicts.append(ArmVerdict(arm, _overall(found), tuple(found)))
        return verdicts

    def unmatched(self, arm: str) -> int:
        """Units of either side that found no neighbour to be matched with, at most over the metrics."""
        return max((c.matcher.unmatched for c in self._arms.get(arm, ())), default=0)


def _metric_verdict(metric: Metric, e: Evidence, p_adjusted: float, alpha: float, alpha_safe: float) -> MetricVerdict:
    worse = "a drop" if metric.good else "a rise"
    if p_adjusted <= alpha:
        # Holm may reject at a looser level than the one that the interval has for all tests alike.
        e = replace(e, lower=max(e.lower, 0.0))
    outcome: Outcome = "KEEP_WATCHING"
    if e.difference is None:
        reason = "no matched units yet"
    elif p_adjusted <= alpha and e.difference >= metric.margin:
        outcome = "HARM"
        beyond = e.lower > metric.margin
        reason = f"{worse} beyond the margin is shown" if beyond else f"{worse} is shown, seen at or past the margin"
    elif e.p_no_harm <= alpha_safe:
        outcome = "NO_HARM"
        some = p_adjusted <= alpha
        reason = f"{worse} is shown, within the margin" if some else f"{worse} by the margin is ruled out"
    elif p_adjusted <= alpha:
        reason = f"{worse} is shown, seen within the margin so far"
    else:
        reason = "neither is shown yet"
    return MetricVerdict(metric, outcome, reason, e, p_adjusted)


def _overall(verdicts: Sequence[MetricVerdict]) -> Outcome:
    outcomes = {verdict.outcome for verdict in verdicts}
    if "HARM" in outcomes:
        return "HARM"
    return "NO_HARM" if outcomes == {"NO_HARM"} else "KEEP_WATCHING"
