"""Explaining a run from its folder: the verdict's words, what changed in the records, drift, layers, advice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.explain import advice
from sqtool.explain.worse import Change, change
from sqtool.files import read_json
from sqtool.gate.acceptance import json_undecided
from sqtool.gate.records import PairedTask, load, pair, task_files
from sqtool.runfolder import RunFolder

RECORDS = "records"
VERDICT = "verdict.json"
DRIFT = "drift.json"
LAYERS = "layers.jsonl"
MOST_DRIFT, MOST_LAYERS = 3, 3


@dataclass(frozen=True)
class Drift:
    """Drift of one kind's answers: mean KL divergence in nats, share of tokens with the same most likely token."""

    kind: str
    kl_mean: float
    top1_agreement: float


@dataclass
class Explanation:
    """Everything that `sqtool explain` says; empty where the run has not come that far."""

    name: str
    outcome: str
    verdict: str = ""
    """PASS, REGRESSED or INCONCLUSIVE; empty when the gate was not reached and there are no records to judge."""
    why: list[str] = field(default_factory=list)
    words: str = ""
    """The verdict in words, several lines."""
    changes: list[Change] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    """Kinds whose answers drifted most."""
    layers: list[dict[str, Any]] = field(default_factory=list)
    """Layers with the largest relative error: name, relative_error and whatever else the quantizer wrote."""
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""


def explain_run(path: Path) -> Explanation:
    """Explain the run in folder `path`; `DataError` when it has no readable run.json."""
    folder = RunFolder(path)
    state = folder.state()
    finished = folder.finished(state)
    places = {name: place for name, (place, _) in finished.items()}
    told = Explanation(str(state["name"]), str(state["outcome"]))
    error = state.get("error") or {}
    problems = [str(p.get("message")) for p in state.get("problems") or []]
    told.why = problems or ([str(error["message"])] if error.get("message") else [])
    if "evaluate" in finished:
        told.drift = _drift(places["evaluate"], finished["evaluate"][1])
    if "evaluate" in places:
        told.layers = _layers(places["evaluate"] / LAYERS)
    judged = None
    if "gate" not in places:
        differences = finished["evaluate"][1].get("differences", ()) if "evaluate" in finished else ()
        judged = _judge_now(told, folder, places, differences)
    if "gate" not in places:
        _no_verdict(told, folder, state, error)
        if judged is None:
            return told
    try:
        verdict = judged or _read_verdict(told, places["gate"] / VERDICT)
        blocking = _blocking(verdict)
        _changes(told, verdict, blocking, places)
        _advise(told, verdict, blocking, _methods(folder))
    except (KeyError, TypeError, ValueError, AttributeError, DataError) as fault:
        told.notes.append(
            f"the verdict cannot be explained further ({type(fault).__name__}: {fault}); `sqtool gate {told.name}` "
            "judges the records again"
        )
    if "approve" in places:
        told.advice += _speculation(told, finished["approve"][1])
    if error and "gate" in places and told.outcome not in ("refused", "inconclusive"):
        # The verdict is one thing, what stopped the run behind the gate another.
        told.advice += [str(error["remedy"])] if error.get("remedy") else []
    return told


def _speculation(told: Explanation, approval: Mapping[str, Any]) -> list[str]:
    """What became of speculation, which has a verdict of its own."""
    if approval.get("approved"):
        return [f"Speculation is approved; `sqtool advise {told.name}` says at which loads it is worth having."]
    reasons = "; ".join(str(reason) for reason in approval.get("reasons") or ())
    blocks = approval.get("gate") == "block"
    what = "and that blocks the release" if blocks else "and nothing else depends on that"
    return [f"Speculation is not approved, {what}: {reasons}. `sqtool advise {told.name}` says what to deploy."]


def _no_verdict(told: Explanation, folder: RunFolder, state: Mapping[str, Any], error: Mapping[str, Any]) -> None:
    stage = next((r["name"] for r in state["stages"] if r["state"] in ("failed", "cancelled", "running")), "")
    if told.outcome == "done":
        told.why.append(f"the run was to end at {state.get('until')}, before the gate")
    elif told.outcome == "running":
        told.why.append("the run has not ended: it is in progress, or it was killed")
    if stage:
        told.notes.append(f"there is no verdict: the run stopped in the stage {stage}")
    if error.get("remedy"):
        told.advice.append(str(error["remedy"]))
    if stage and folder.failed(stage).is_dir():
        told.advice.append(f"What the stage left is in {folder.failed(stage)}, the log in {folder.log}.")
    if told.outcome != "failed":
        told.advice.append("`sqtool quantize` with the same recipe goes on behind the last finished stage.")


def _judge_now(
    told: Explanation, folder: RunFolder, places: Mapping[str, Path], differences: Sequence[Mapping[str, str]]
) -> Mapping[str, Any] | None:
    """What the recipe's gate would say of a run that has both sides' records and ended before its gate."""
    from sqtool.gate.explain import explain
    from sqtool.gate.judge import judge
    from sqtool.gate.spec import GateSpec

    if not {"baseline", "evaluate"} <= set(places):
        return None
    try:
        spec = GateSpec.model_validate(read_json(folder.recipe_json)["gate"])
        control = places["control"] / RECORDS if "control" in places else None
        sides = places["baseline"] / RECORDS, places["evaluate"] / RECORDS
        verdict = judge(spec, *sides, control=control, differences=differences)
    except (DataError, KeyError, TypeError, ValueError):
        return None
    told.notes.append("judged just now from its records; that is no verdict of the run, and nothing is written")
    told.verdict, told.words = verdict.outcome, explain(verdict)
    return verdict.model_dump(mode="json", by_alias=True)


def _read_verdict(told: Explanation, path: Path) -> Mapping[str, Any]:
    """The verdict as JSON; its words too, if this version's gate can read it."""
    from sqtool.gate.explain import explain
    from sqtool.gate.verdict import Verdict

    verdict = read_json(path)
    if not isinstance(verdict, Mapping):
        raise DataError(path, "expected a JSON object")
    told.verdict = str(verdict["outcome"])
    try:
        told.words = explain(Verdict.from_json(path.read_text(encoding="utf-8")))
    except ValueError:
        told.notes.append("the verdict was written by another version of the gate and is read only in part")
    return verdict


def _blocking(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Gated metrics and slices because of which the outcome is no PASS."""
    parts = [*(m for m in verdict["metrics"] if m["gated"]), *verdict.get("slices", ())]
    regressed = [p for p in parts if p["outcome"] == "REGRESSED"]
    return regressed or [p for p in parts if p.get("require", "pass") == "pass" and p["outcome"] != "PASS"]


def _changes(
    told: Explanation,
    verdict: Mapping[str, Any],
    blocking: Sequence[Mapping[str, Any]],
    places: Mapping[str, Path],
) -> None:
    """The metrics that block (where nothing does, those with any worse item), those with most worse items first."""
    gated = [m for m in verdict["metrics"] if m["gated"]]
    names = {p["metric"] for p in blocking} or {m["metric"] for m in gated if m["worsened"]}
    chosen = sorted((m for m in gated if m["metric"] in names), key=lambda m: -m["worsened"])
    tasks: dict[str, PairedTask] = {}
    for metric in chosen:
        name = str(metric["metric"])
        task = name.rpartition(".")[0]
        try:
            if task not in tasks:
                tasks[task] = _pair(task, places)
                _same_records(told, verdict, task, tasks[task])
            told.changes.append(change(tasks[task], name, lower_is_better=metric.get("direction") == "lower"))
        except (DataError, OSError) as fault:
            told.notes.append(f"{name}: its records cannot be read ({fault})")


def _pair(task: str, places: Mapping[str, Path]) -> PairedTask:
    sides = []
    for stage in ("baseline", "evaluate"):
        if stage not in places:
            raise DataError(stage, "the folder of this stage is not there")
        files = task_files(places[stage] / RECORDS)
        if task not in files:
            raise DataError(places[stage] / RECORDS, f"holds no records of task {task!r}")
        sides.append(load(files[task], with_fields=True))
    return pair(*sides, part=True)  # an evaluation may have ended early


def _same_records(told: Explanation, verdict: Mapping[str, Any], task: str, records: PairedTask) -> None:
    for side in ("baseline", "candidate"):
        judged = verdict.get("inputs", {}).get(side, {}).get(task, {}).get("sha256")
        if judged is not None and judged != getattr(records, side).sha256:
            told.notes.append(f"the {side}'s records of {task} are not those that were judged")


def _advise(
    told: Explanation,
    verdict: Mapping[str, Any],
    blocking: Sequence[Mapping[str, Any]],
    methods: Sequence[Mapping[str, Any]],
) -> None:
    differ = [d for d in verdict.get("differences", ()) if not d["allowed"]]
    if differ:
        told.advice.append(advice.of_differences(differ))
    elif told.verdict == "REGRESSED":
        told.advice += advice.of_regression(told.changes, methods, told.layers)
    elif told.verdict == "PASS":
        told.advice += advice.of_pass([m for m in verdict["metrics"] if m["gated"]])
    else:
        reasons = [str(reason) for reason in verdict.get("reasons", ())]
        if json_undecided(verdict):
            told.advice += advice.of_doubt(blocking, reasons, allowed=verdict.get("inconclusive") == "allow")
        else:
            told.advice += advice.of_unsteadiness(reasons)


def _methods(folder: RunFolder) -> list[Mapping[str, Any]]:
    """`quantize.methods` of the recipe as it was understood; empty for a checkpoint that was made elsewhere."""
    try:
        methods = read_json(folder.recipe_json)["quantize"]["methods"]
    except (DataError, KeyError, TypeError):
        return []
    return [m for m in methods if isinstance(m, Mapping)] if isinstance(methods, list) else []


def _drift(place: Path, summary: Mapping[str, Any]) -> list[Drift]:
    drift = summary.get("drift")
    if not drift:
        try:
            drift = read_json(place / DRIFT)
        except DataError:
            return []
    kinds = drift.get("by_kind") if isinstance(drift, Mapping) else None
    found = []
    for kind, part in (kinds or {}).items():
        answers = part.get("answers") if isinstance(part, Mapping) else None
        if isinstance(answers, Mapping) and {"kl_mean", "top1_agreement"} <= set(answers):
            found.append(Drift(str(kind), float(answers["kl_mean"]), float(answers["top1_agreement"])))
    return sorted(found, key=lambda d: -d.kl_mean)[:MOST_DRIFT]


def _layers(path: Path) -> list[dict[str, Any]]:
    """The layers with the largest relative error; a line without one is passed over, for the file is optional."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            layer = json.loads(line)
        except ValueError:
            continue
        error = layer.get("relative_error") if isinstance(layer, dict) and "name" in layer else None
        if isinstance(error, int | float) and not isinstance(error, bool) and math.isfinite(error):
            found.append(layer)
    return sorted(found, key=lambda layer: -float(layer["relative_error"]))[:MOST_LAYERS]
