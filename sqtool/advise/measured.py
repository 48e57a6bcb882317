"""speculate.json as questions: what an arm is, what it gained at a load, what its interval is. Pure.

A figure that the file does not have, or gives as missing with a reason, is None here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqtool.errors import UsageError

SCHEMA = "sqtool.speculate/2"
BASELINE, QUANTIZED, SPECULATIVE, BOTH = "baseline", "quantized", "speculative", "both"
FOUR = (BASELINE, QUANTIZED, SPECULATIVE, BOTH)
CONTROL = "baseline_again"
GAIN_OF = {QUANTIZED: "quantization", SPECULATIVE: "speculation", BOTH: "both"}
"""How `interaction` calls what an arm gained over the baseline."""
E2E = "e2e_p50"
"""The measure that decides: the median of a whole request, which is what a user waits for."""
_SWEEP = re.compile(r"_k(\d+)$")


@dataclass(frozen=True)
class Gain:
    """How many times better than the baseline (1 = the same), with its interval. `paired`: by requests, else the two
    arms' own intervals put together, which is wider."""

    gain: float
    low: float
    high: float
    paired: bool = True

    def __str__(self) -> str:
        return f"{self.gain:.2f} times [{self.low:.2f}, {self.high:.2f}]"


def check_schema(report: Mapping[str, Any], where: str = "speculate.json") -> None:
    """`UsageError` when `report` is of another version than this one reads."""
    found = report.get("schema")
    if found != SCHEMA:
        raise UsageError(
            f"{where} has schema {found!r}, this version reads {SCHEMA!r}",
            remedy="Measure again: `sqtool speculate RECIPE --force speculate`.",
        )


@dataclass(frozen=True)
class Measured:
    """One speculate.json (`sqtool.speculate/2`)."""

    report: Mapping[str, Any]

    @property
    def loads(self) -> tuple[str, ...]:
        """Names of the loads, the lightest first as far as their names say (`c4`, `r2.5`; a trace comes last)."""
        return tuple(sorted((str(load) for load in self.report.get("loads") or ()), key=_weight))

    @property
    def arms(self) -> dict[str, Mapping[str, Any]]:
        """Every arm but the A/A control."""
        return {str(name): arm for name, arm in self.report.get("arms", {}).items() if name != CONTROL}

    def target(self, arm: str) -> str:
        """`baseline` or `quantized`: the weights that `arm` serves."""
        return str(self.arms[arm].get("target") or (QUANTIZED if arm in (QUANTIZED, BOTH) else BASELINE))

    def speculates(self, arm: str) -> bool:
        return bool(self.arms[arm].get("speculates"))

    def config(self, arm: str) -> Mapping[str, Any]:
        """The --speculative-config of a speculating arm."""
        if not self.speculates(arm):
            return {}
        own = self.arms[arm].get("speculative_config")
        config = dict(own if isinstance(own, Mapping) else self.report.get("speculative_config") or {})
        swept = _SWEEP.search(arm)
        if swept and not isinstance(own, Mapping):
            config["num_speculative_tokens"] = int(swept[1])
        return config

    def draft_tokens(self, arm: str) -> int | None:
        """num_speculative_tokens of a speculating arm."""
        tokens = self.config(arm).get("num_speculative_tokens")
        return int(tokens) if isinstance(tokens, int) else None

    def at(self, arm: str, load: str) -> Mapping[str, Any]:
        """What `arm` did at `load`; empty where it was not measured there."""
        found = (self.report.get("arms", {}).get(arm) or {}).get("loads", {}).get(load)
        return found if isinstance(found, Mapping) else {}

    def figure(self, arm: str, load: str, group: str, name: str) -> float | None:
        """One latency in ms, such as ("e2e_ms", "p95")."""
        return number(((self.at(arm, load).get("latency") or {}).get(group) or {}).get(name))

    def interval(self, arm: str, load: str, group: str, name: str) -> tuple[float, float] | None:
        """The interval of a latency in ms."""
        return pair((((self.at(arm, load).get("latency") or {}).get(group) or {}).get("ci") or {}).get(name))

    def gain(self, arm: str, load: str, measure: str = E2E) -> Gain | None:
        """How many times better than the baseline `arm` was at `load`; None where that was not measured."""
        if arm == BASELINE:
            return None
        known = ((self.report.get("interaction") or {}).get(load) or {}).get(measure) or {}
        paired = _gain(known.get(GAIN_OF[arm]) if arm in GAIN_OF else (known.get("others") or {}).get(arm))
        return paired or self._from_intervals(arm, load, measure)

    def over_plain(self, arm: str, load: str, measure: str = E2E) -> Gain | None:
        """How many times better a speculating arm was than the arm with the same target that does not speculate."""
        known = ((self.report.get("interaction") or {}).get(load) or {}).get(measure) or {}
        return _gain((known.get("over_plain") or {}).get(arm))

    def _from_intervals(self, arm: str, load: str, measure: str) -> Gain | None:
        group, _, name = measure.rpartition("_")
        base, own = (self.figure(a, load, f"{group}_ms", name) for a in (BASELINE, arm))
        left, right = (self.interval(a, load, f"{group}_ms", name) for a in (BASELINE, arm))
        if not base or not own or left is None or right is None or min(*left, *right) <= 0:
            return None
        return Gain(base / own, left[0] / right[1], left[1] / right[0], paired=False)

    def noise(self, load: str, measure: str = E2E) -> Gain | None:
        """The A/A arm over the baseline: what a gain is when nothing was changed."""
        return _gain(((self.report.get("control") or {}).get(load) or {}).get(measure))

    def steady(self, load: str, measure: str = E2E) -> bool:
        """False where the A/A arm shows that the machine changed by more than the sample of requests explains."""
        entry = ((self.report.get("control") or {}).get(load) or {}).get(measure) or {}
        return entry.get("steady") is not False

    def floor(self, load: str, measure: str = E2E) -> float:
        """A gain up to this many times is what the A/A arm shows too; 1 without an A/A arm."""
        noise = self.noise(load, measure)
        if noise is None or noise.low <= 0:
            return 1.0
        return max(1.0, noise.high, 1 / noise.low)

    def speculation(self, arm: str, load: str) -> Mapping[str, Any]:
        """Acceptance of `arm` at `load`; empty where the arm does not speculate or the runtime does not say."""
        found = self.at(arm, load).get("speculation")
        return found if isinstance(found, Mapping) and "missing" not in found else {}

    def cost(self, arm: str, load: str) -> tuple[float, tuple[float, float] | None, str] | None:
        """(cost per accepted answer, its interval, unit)."""
        found = self.at(arm, load).get("cost")
        if not isinstance(found, Mapping) or "missing" in found:
            return None
        value = number(found.get("per_accepted_answer"))
        return None if value is None else (value, pair(found.get("ci")), str(found.get("unit") or ""))

    def accepted(self, arm: str, load: str) -> tuple[float | None, float | None]:
        """(answers that have a scorer, those of them that it accepted within the SLO)."""
        found = self.at(arm, load).get("accepted")
        found = found if isinstance(found, Mapping) else {}
        return number(found.get("of")), number(found.get("within_slo"))

    def failed_share(self, arm: str, load: str) -> float:
        """Share of requests at `load` that failed."""
        found = self.at(arm, load)
        sent = found.get("requests") or 0
        return float((found.get("failures") or {}).get("count") or 0) / sent if sent else 0.0

    def memory(self, arm: str, what: str) -> float | None:
        """One of the arm's memory figures, such as `weights_bytes`."""
        return number(((self.report.get("arms", {}).get(arm) or {}).get("memory") or {}).get(what))


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def pair(value: Any) -> tuple[float, float] | None:
    """(low, high) of an interval; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _gain(value: Any) -> Gain | None:
    if not isinstance(value, Mapping):
        return None
    middle, ends = number(value.get("gain")), pair(value.get("ci"))
    return None if middle is None or ends is None else Gain(middle, *ends)


def _weight(load: str) -> tuple[int, float, str]:
    match = re.fullmatch(r"([cr])(\d+(?:\.\d+)?)", load)
    return (2, 0.0, load) if match is None else ("cr".index(match[1]), float(match[2]), load)
