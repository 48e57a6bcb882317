"""A run as CI needs it: how it ended, each gated metric and slice with what the gate does about it, how to repeat it.

The verdict is read as plain JSON, so that one with more metrics, fields or outcomes than this version knows can still
be shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqtool.errors import EXIT_RELEASED, DataError
from sqtool.files import read_json
from sqtool.gate.acceptance import json_exit_code
from sqtool.report import Facts, collect
from sqtool.report.numbers import percent, signed_points
from sqtool.report.verdict import HEADERS, metric_row
from sqtool.runfolder import RunFolder

_PLACES = {
    "device": "--device",
    "base_url": "--baseline-url",
    "candidate_base_url": "--candidate-url",
    "model": "--baseline-name",
    "candidate_model": "--candidate-name",
    "api_key_env": "--api-key-env",
}
"""Keys of the engine section, and the options of `sqtool gate` that mean them."""
Effect = Literal["passed", "refused", "allowed", "not judged"]
"""What the gate does about a metric: `allowed` is INCONCLUSIVE where the recipe or the slice's rule lets it be."""


@dataclass(frozen=True)
class Judged:
    """One gated metric, or one slice of it. `row` is the report's table row, under HEADERS."""

    task: str
    name: str
    outcome: str
    effect: Effect
    row: tuple[str, ...]
    worst: tuple[Mapping[str, Any], ...]

    @property
    def title(self) -> str:
        """`task.metric`, with the slice behind it."""
        return f"{self.task}.{self.name}"

    @property
    def sentence(self) -> str:
        """The figures and the outcome in one line."""
        cells = dict(zip(HEADERS, self.row, strict=True))
        return (
            f"{cells['baseline']} -> {cells['candidate']}, change {cells['change']} points "
            f"(interval {cells['interval']}), margin {cells['margin']}, {cells['items']} items, "
            f"{cells['better/worse']} better/worse: {cells['outcome']}"
        )


@dataclass(frozen=True)
class CiRun:
    """`outcome` is run.json's (released, refused, failed, ...); `exit_code` None where the run did not end."""

    name: str
    outcome: str
    exit_code: int | None
    stage_seconds: float
    """What the finished stages took, those included whose result was there already."""
    started: str
    stopped_in: str
    """The stage that failed or was cut off; empty when none was."""
    error: Mapping[str, Any]
    facts: Facts
    verdict: Mapping[str, Any]
    judged: tuple[Judged, ...]
    diagnostic: tuple[tuple[str, str], ...]
    """(metric, figures) of what was measured and decides nothing."""
    task_seconds: Mapping[str, float]
    """How long the candidate took to answer each task."""
    repeat: tuple[str, ...]
    """Commands that make this run again, judge it again and explain it."""

    @property
    def good(self) -> bool:
        """Whether the run ended and its exit code was 0."""
        return self.exit_code == 0

    @property
    def gate_decided(self) -> bool:
        """Whether what stopped the run is its verdict, and not a failure before or behind the gate, nor the verdict on
        speculation where the recipe lets that block."""
        accepted = json_exit_code(self.verdict) == EXIT_RELEASED
        return bool(self.verdict) and not accepted and self.outcome in ("refused", "inconclusive")


def read_run(path: Path) -> CiRun:
    """The run in folder `path`; `DataError` when it has no readable run.json."""
    folder = RunFolder(path)
    state = folder.state()
    facts = collect(path)
    finished = folder.finished(state)
    verdict = _verdict(finished["gate"][0] / "verdict.json") if "gate" in finished else {}
    try:
        judged, diagnostic = _judged(verdict), _diagnostic(verdict)
    except (KeyError, TypeError, ValueError) as error:
        judged, diagnostic = (), ()
        facts.unreadable.append(f"the verdict cannot be shown ({type(error).__name__}: {error})")
    tasks = finished["evaluate"][1].get("tasks") if "evaluate" in finished else None
    ends = ("failed", "cancelled", "running", "waiting")
    return CiRun(
        name=str(state["name"]),
        outcome=str(state["outcome"]),
        exit_code=state.get("exit_code"),
        stage_seconds=sum(r.get("seconds") or 0.0 for r in state["stages"] if r["name"] in finished),
        started=str(state["started"]),
        stopped_in=next((r["name"] for r in state["stages"] if r["state"] in ends), ""),
        error=state.get("error") or {},
        facts=facts,
        verdict=verdict,
        judged=judged,
        diagnostic=diagnostic,
        task_seconds={
            name: float(task["seconds"])
            for name, task in (tasks or {}).items()
            if isinstance(task, Mapping) and isinstance(task.get("seconds"), int | float)
        },
        repeat=_repeat(folder, state, bool(verdict)),
    )


def _verdict(path: Path) -> Mapping[str, Any]:
    try:
        value = read_json(path)
    except DataError:
        return {}  # facts.unreadable says so
    return value if isinstance(value, Mapping) else {}


def _judged(verdict: Mapping[str, Any]) -> tuple[Judged, ...]:
    parts = [m for m in verdict.get("metrics", ()) if m.get("gated")] + list(verdict.get("slices", ()))
    accepted = json_exit_code(verdict) == EXIT_RELEASED
    found = []
    for part in parts:
        task, _, metric = str(part["metric"]).rpartition(".")
        of_slice = part.get("slice_field") is not None
        found.append(
            Judged(
                task=task,
                name=f"{metric} [{part['slice_field']}={part['slice_value']}]" if of_slice else metric,
                outcome=str(part["outcome"]),
                effect=_effect(part, accepted=accepted),
                row=metric_row(part),
                worst=tuple(part.get("worst") or ()),
            )
        )
    return tuple(found)


def _effect(part: Mapping[str, Any], *, accepted: bool) -> Effect:
    """By the gate's rules: a slice that needs no PASS blocks only when it is REGRESSED."""
    if part["outcome"] == "PASS":
        return "passed"
    if part["outcome"] == "REGRESSED":
        return "refused"
    if part.get("require", "pass") == "pass":
        return "allowed" if accepted else "refused"
    return "not judged" if part["outcome"] == "NOT_JUDGED" else "allowed"


def _diagnostic(verdict: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (
            str(m["metric"]),
            f"{percent(m['baseline'])} -> {percent(m['candidate'])}, change {signed_points(m['difference'])} points",
        )
        for m in verdict.get("metrics", ())
        if not m.get("gated")
    )


def _repeat(folder: RunFolder, state: Mapping[str, Any], judged: bool) -> tuple[str, ...]:
    recipe = state.get("recipe")
    commands = [f"sqtool quantize {shlex.quote(str(recipe))}"] if recipe else _without_recipe(folder, state)
    name = shlex.quote(str(state["name"]))
    return (*commands, *([f"sqtool gate {name}"] if judged else []), f"sqtool explain {name}")


def _without_recipe(folder: RunFolder, state: Mapping[str, Any]) -> list[str]:
    """The command of a run that `sqtool gate --baseline ... --candidate ...` made."""
    try:
        recipe = read_json(folder.recipe_json)
        checkpoint, tasks = recipe["quantize"]["checkpoint"], recipe["evaluate"]["tasks"]
        engine = recipe.get("engine") or {}
    except (DataError, KeyError, TypeError):
        return []
    words = ["sqtool", "gate", "--baseline", str(state["model"]), "--candidate", str(checkpoint)]
    for task in tasks:
        words += ["--task", str(task)]
    for key, option in _PLACES.items():
        value = engine.get(key)
        if value and value != "auto":
            words += [option, str(value)]
    return [shlex.join(words)]
