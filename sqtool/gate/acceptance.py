"""What a verdict lets happen: the one place that says whether a candidate goes on, and with which exit code.

`inconclusive: allow` accepts the risk of not knowing. It covers nothing else: not a regression that is shown, and not
an engine on which no verdict is possible. Knows outcomes only, so that whoever reads a verdict's JSON decides alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqtool.errors import EXIT_INCONCLUSIVE, EXIT_REFUSED, EXIT_RELEASED


def exit_code_of(outcome: str, inconclusive: str, *, undecided: bool) -> int:
    """0 PASS (or INCONCLUSIVE where the recipe allows it and nothing was decided), 1 REGRESSED, 3 INCONCLUSIVE."""
    if outcome == "REGRESSED":
        return EXIT_REFUSED
    if outcome == "PASS" or (outcome == "INCONCLUSIVE" and inconclusive == "allow" and undecided):
        return EXIT_RELEASED
    return EXIT_INCONCLUSIVE


def is_undecided(outcome: str, *, steady: bool, parts: Iterable[str]) -> bool:
    """Whether an INCONCLUSIVE verdict means that the items could not tell. `parts` are the outcomes of the gated
    metrics and slices, `steady` whether the engine agrees with itself (or was not asked)."""
    return outcome == "INCONCLUSIVE" and steady and "REGRESSED" not in parts


def json_undecided(verdict: Mapping[str, Any]) -> bool:
    """`is_undecided` of a verdict's JSON value; what cannot be read is never undecided."""
    control, parts = verdict.get("control"), [*verdict.get("metrics", ()), *verdict.get("slices", ())]
    if not all(isinstance(part, Mapping) for part in (*parts, *([] if control is None else [control]))):
        return False
    return is_undecided(
        str(verdict.get("outcome")),
        steady=control is None or control.get("stable") is True,
        parts=[str(part.get("outcome")) for part in parts if part.get("gated", True)],
    )


def json_exit_code(verdict: Mapping[str, Any]) -> int:
    """`exit_code_of` of a verdict's JSON value."""
    outcome, inconclusive = str(verdict.get("outcome")), str(verdict.get("inconclusive"))
    return exit_code_of(outcome, inconclusive, undecided=json_undecided(verdict))
