"""Advice on a run, from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.advise import Advice, advise
from sqtool.errors import DataError, UsageError
from sqtool.files import read_json
from sqtool.runfolder import RunFolder

if TYPE_CHECKING:
    from sqtool.report.facts import Facts

FILES = {
    "speculate": ("speculate", "speculate.json"),
    "gate": ("gate", "verdict.json"),
    "approve": ("approve", "speculation_verdict.json"),
}


def advice_of(folder: RunFolder) -> Advice:
    """What to deploy, by the stages that the run finished. `UsageError` when it came to no verdict and measured no
    arms, so that there is nothing to advise on; `DataError` for a file that cannot be read."""
    state = folder.state()
    places = {name: place for name, (place, _) in folder.finished(state).items()}
    found = {what: _read(places, what) for what in FILES}
    if found["gate"] is None and found["speculate"] is None:
        raise UsageError(
            f"{state['name']} has neither a verdict nor measured arms, so there is nothing to advise on",
            remedy=f"`sqtool speculate {state.get('recipe') or 'RECIPE'}` measures them.",
        )
    return advise(found["speculate"], verdict=found["gate"], speculation=found["approve"])


def add_advice(facts: Facts, folder: RunFolder) -> None:
    """The report's last section: what to deploy, what to try first, what each arm costs to operate."""
    from sqtool.report.facts import Table
    from sqtool.report.speculation import Section
    from sqtool.report.speculation_loads import NONE, arm_name

    told = advice_of(folder)
    loads = tuple(
        (a.load, arm_name(a.deploy), str(a.num_speculative_tokens or NONE), a.because.replace("_", " "), a.why)
        for a in told.loads
    )
    arms = tuple(
        (arm_name(a.arm), a.says, a.reason, str(a.complexity), "; ".join(a.complexity.failure_modes) or NONE)
        for a in told.arms
    )
    applies = {True: "yes", False: "no", None: "unknown"}
    rules = tuple((r.name.replace("_", " "), applies[r.applies], r.limit, r.says) for r in told.rules)
    tables = (
        ("", Table(("load", "deploy", "draft tokens", "because of", "why"), loads)),
        ("Each arm", Table(("arm", "advice", "reason", "to operate", "how it fails"), arms)),
        ("Rules", Table(("rule", "applies", "limit", "what was seen"), rules)),
    )
    if facts.speculation_status:
        facts.speculation.insert(1, f"advice: {told.headline[:1].lower()}{told.headline[1:].rstrip('.')}")
    facts.advice = Section(
        "What to deploy",
        tuple((title, table) for title, table in tables if table.rows),
        (told.headline, *(f"First: {line}" for line in told.first), *(f"Take care: {line}" for line in told.cautions)),
    )


def _read(places: dict[str, Path], what: str) -> dict[str, Any] | None:
    stage, file = FILES[what]
    if stage not in places:
        return None
    value = read_json(places[stage] / file)
    if not isinstance(value, dict):
        raise DataError(places[stage] / file, "expected a JSON object")
    return value
