"""What to take care of, whatever is deployed: an unsteady machine, a ranking that turns round, a missed SLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqtool.advise.complexity import rank
from sqtool.advise.measured import Measured, number
from sqtool.advise.rules import Case, multiplies

if TYPE_CHECKING:
    from sqtool.advise.choose import LoadAdvice

SIGNIFICANT = 0.05
SLOWER_AFTER = 1.25
"""So many times the median before streams were cut off, and the server has not recovered."""
UNSTEADY = 1.25
"""An A/A arm this many times away from the baseline hides the gains that are usual at a full batch."""
MISSED = 0.01
"""With more requests outside the SLO than this share, it is not met."""


def cautions(case: Case, loads: Sequence[LoadAdvice]) -> list[str]:
    """Sentences, the most important first."""
    measured = case.measured
    if measured is None:
        return []
    said = _unsteady(measured)
    multiplied = multiplies(case)
    if multiplied.applies:
        said.append(multiplied.says)
    if len({advice.deploy for advice in loads}) > 1:
        said.append(
            "The ranking changes with the load: choose for the load that the server will see, not for the best one."
        )
    said += _outside_slo(measured, loads)
    for pair, found in (measured.report.get("sampling") or {}).items():
        p_value = number(found.get("p_holm")) if isinstance(found, Mapping) else None
        if p_value is not None and p_value < SIGNIFICANT:
            said.append(f"Sampled answers of {pair} do not have one distribution (p = {p_value:.2g}, adjusted).")
    for arm in dict.fromkeys(advice.deploy for advice in loads):
        said += _probed(arm, measured.arms.get(arm, {}).get("probe"))
    return said + _unjudged(case, measured, loads)


def _unsteady(measured: Measured) -> list[str]:
    """What the A/A arm says of the machine."""
    if not measured.report.get("control"):
        return ["No A/A arm ran, so it is not known how much two runs of the same server differ here."]
    floors = {load: measured.floor(load) for load in measured.loads if not measured.steady(load)}
    floors |= {load: floor for load in measured.loads if (floor := measured.floor(load)) > UNSTEADY}
    apart = ", ".join(f"{floors[load]:.2f} times at {load}" for load in measured.loads if load in floors)
    if not apart:
        return []
    said = (
        f"The baseline differs from itself by up to {apart}: measure on a machine with nothing else to do, with more "
        "requests or repeats, before you believe a gain."
    )
    return [said]


def _outside_slo(measured: Measured, loads: Sequence[LoadAdvice]) -> list[str]:
    """Where the arm to deploy leaves requests outside of the SLO."""
    found: dict[str, list[str]] = {}
    for advice in loads:
        goodput = measured.at(advice.deploy, advice.load).get("goodput")
        share = number(goodput.get("share")) if isinstance(goodput, Mapping) else None
        if share is not None and share < 1 - MISSED:
            found.setdefault(advice.deploy, []).append(f"{share:.0%} at {advice.load}")
    return [
        f"Of the requests to `{arm}` only {', '.join(shares)} meet the SLO: send each server less."
        for arm, shares in found.items()
    ]


def _unjudged(case: Case, measured: Measured, loads: Sequence[LoadAdvice]) -> list[str]:
    """Arms that would be the choice, had their answers been judged."""
    said = []
    judged = (case.speculation or {}).get("arms") or {}
    for arm in sorted(measured.arms, key=lambda name: rank(measured, name)):
        if arm in judged or not measured.speculates(arm) or not case.approved:
            continue
        faster = [
            advice.load
            for advice in loads
            if (own := measured.gain(arm, advice.load)) is not None
            and own.low > max(measured.floor(advice.load), advice.gain.high if advice.gain else 1.0)
        ]
        if faster:
            said.append(
                f"`{arm}` is faster still at {', '.join(faster)}, and its answers were not judged: make it the setting "
                "of the recipe and run again."
            )
    return said


def _probed(arm: str, probe: Any) -> list[str]:
    """What cutting streams off left behind."""
    if not isinstance(probe, Mapping):
        return []
    said = []
    running = probe.get("running_after_s") or []
    if running and isinstance(running[-1], list | tuple) and running[-1][1]:
        seconds, left = running[-1]
        said.append(f"`{arm}`: {left:g} requests were still running {seconds:g} s after their clients had gone.")
    if probe.get("kv_freed") is False:
        said.append(f"`{arm}`: the KV cache of streams that were cut off was not freed.")
    ratio = number(probe.get("e2e_p50_ratio"))
    if ratio is not None and ratio > SLOWER_AFTER:
        said.append(f"`{arm}`: after streams were cut off, the median request took {ratio:.2f} times as long.")
    return said
