"""Speculation goes through the gate too: joins the arms' task records with the gate, and says approved or not.

`speculative` is held to `baseline` and `both` to `quantized`: the same paired comparison, metrics and margins as the
candidate's. A recipe's rules on acceptance, tail and cost count as well. What cannot be judged is not approved.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evals.engines import conditions
from sqtool.advise import advise
from sqtool.advise.measured import BASELINE, BOTH, CONTROL, QUANTIZED, SPECULATIVE, Measured, check_schema, number
from sqtool.errors import DataError
from sqtool.files import write_json
from sqtool.gate.records import task_files
from sqtool.gate.spec import GateSpec
from sqtool.speculate.rules import EXCEEDED, NOT_SHOWN, judge
from sqtool.stages.gate import deciding

if TYPE_CHECKING:
    from sqtool.gate.verdict import Verdict
    from sqtool.speculate.spec import RulesSpec

SCHEMA = "sqtool.speculation/1"
SPECULATION_VERDICT = "speculation_verdict.json"
QUALITY = "quality"
DISTRIBUTION_ALPHA = 0.01
"""Level of the test of sampled answers' distribution, which a recipe asks for with speculate.sampling."""
DECIDE = (SPECULATIVE, BOTH)
"""The arms that speculation is approved on; the others are judged for themselves."""


@dataclass(frozen=True)
class Sides:
    """Folders of records: the baseline's, the candidate's, and the A/A control's if there is one."""

    baseline: Path
    quantized: Path
    control: Path | None = None
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Facts of the engines that gave the records, by `baseline` and `quantized`."""

    def of(self, target: str) -> Path:
        return self.quantized if target == QUANTIZED else self.baseline


def judge_speculation(
    folder: Path,
    report: Mapping[str, Any],
    spec: GateSpec,
    sides: Sides,
    *,
    gate: Literal["report", "block"] = "report",
    rules: RulesSpec | None = None,
    some_items: bool = False,
    ended_early: Collection[str] = (),
    verdict: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Judge every speculating arm of the speculate stage's `folder` and write speculation_verdict.json to `out`
    (default: `folder`); its content.

    `report` is speculate.json, and `rules` are the recipe's, judged on its figures. `some_items`: the recipe has the
    arms answer only a part of the items (`speculate.quality.items`), so pairs are made of those; otherwise an item that
    an arm lacks is an error, never a smaller sample. `ended_early` names the tasks of which the candidate answered a
    part because its gate had seen enough. `verdict` is the gate's verdict.json, for the advice. `DataError` for
    records that cannot be read.
    """
    check_schema(report, str(folder / "speculate.json"))
    measured = Measured(report)
    pairs: dict[str, dict[str, Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    for arm in measured.arms:
        if not measured.speculates(arm):
            continue
        if arm not in DECIDE and not (folder / "arms" / arm / QUALITY).is_dir():
            continue  # measured for its speed alone: nothing is said of its answers, and so it is not recommended
        target = measured.target(arm)
        engine = measured.arms[arm].get("engine") or {}
        judged, reasons = _judge_arm(folder, arm, spec, sides, target, engine, some_items, ended_early)
        reasons += _drawn(report, arm)
        if judged is not None:
            pairs[f"{arm}/{target}"] = judged.model_dump(mode="json", by_alias=True)
        arms[arm] = {"approved": not reasons, "reasons": reasons}
    limits = judge(rules, report)
    reasons = [f"{arm}: {reason}" for arm in DECIDE if arm in arms for reason in arms[arm]["reasons"]]
    if BOTH not in arms:
        reasons.append("no arm `both` was measured, so speculation with the quantized checkpoint is not judged")
    reasons += [_broken(rule) for rule in limits if not rule["ok"]]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "approved": not reasons,
        "gate": gate,
        "method": report.get("method"),
        "speculative_config": dict(report.get("speculative_config") or {}),
        "pairs": pairs,
        "arms": arms,
        "rules": limits,
        "reasons": reasons,
    }
    result["advice"] = advise(report, verdict=verdict, speculation=result).to_json()
    # As it will be read: tuples are lists, and nothing is NaN.
    result = json.loads(json.dumps(result, allow_nan=False))
    write_json((out or folder) / SPECULATION_VERDICT, result)
    return result


def _judge_arm(
    folder: Path,
    arm: str,
    spec: GateSpec,
    sides: Sides,
    target: str,
    engine: Mapping[str, Any],
    some_items: bool,
    ended_early: Collection[str],
) -> tuple[Verdict | None, list[str]]:
    """(verdict, why it is not approved) of one speculating arm."""
    quality = folder / "arms" / arm / QUALITY
    if not quality.is_dir():
        return None, ["it answered no tasks, so its quality was not judged"]
    answered = task_files(quality)
    metrics = {name: rule for name, rule in spec.metrics.items() if name.rpartition(".")[0] in answered}
    left_out = sorted(set(spec.gated) - set(metrics))
    if not any(rule.gated for rule in metrics.values()):
        return None, [f"it answered none of the gated tasks ({', '.join(left_out)})"]
    # Complete or an error: the arms' answers never end early.
    rules = spec.model_copy(update={"metrics": metrics, "early_stop": "off"})
    judged = _judged(rules, sides, target, answered, some_items, ended_early)
    reasons = []
    if judged.outcome != "PASS":  # `inconclusive: allow` is for the candidate, which is served without speculation then
        reasons = [f"{judged.outcome} against {target}: {line}" for line in deciding(judged)]
    reasons += _apart(sides.engines.get(target), engine, target)
    if left_out:
        reasons.append(f"not answered, so not judged: {', '.join(left_out)}")
    return judged, reasons


def _drawn(report: Mapping[str, Any], arm: str) -> list[str]:
    """Whether sampled answers are shown to come from another distribution than without speculation.

    Greedy answers may be the same to the letter and sampled ones not: they take another path through the verification.
    The level is lower than the gate's, for a test that looks at everything will find chance too; and where the A/A arm
    fails the same test, it is the sampling that is at fault and nothing follows.
    """
    tests = report.get("sampling") or {}
    control = number((tests.get(f"{CONTROL}/{BASELINE}") or {}).get("p_value"))
    if control is not None and control < DISTRIBUTION_ALPHA:
        return []
    said = []
    for pair_of, found in tests.items():
        p_value = number(found.get("p_holm"))
        if str(pair_of).partition("/")[0] == arm and p_value is not None and p_value < DISTRIBUTION_ALPHA:
            against = "" if control is None else f", {control:.2g} for the A/A arm"
            said.append(
                f"sampled answers do not have the distribution of those of {str(pair_of).partition('/')[2]} "
                f"(p = {p_value:.2g} adjusted{against}), such as {', '.join(map(str, found.get('furthest') or ['-']))}"
            )
    return said


def _apart(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any], target: str) -> list[str]:
    """Under which other conditions the arm answered than the side that it is held to."""
    if not theirs or not ours:
        return []
    left, right = conditions(theirs), conditions(ours)
    apart = [f"{name} {right[name]} and {left[name]}" for name in left if name in right and left[name] != right[name]]
    return [f"answered under other conditions than {target}: {', '.join(apart)}"] if apart else []


def _judged(
    spec: GateSpec,
    sides: Sides,
    target: str,
    answered: Mapping[str, Path],
    some_items: bool,
    ended_early: Collection[str],
) -> Verdict:
    from sqtool.gate.judge import judge as compare

    tasks = sorted({name.rpartition(".")[0] for name in spec.metrics})
    reference = task_files(sides.of(target))
    # The A/A control is the baseline's: it says nothing of how the quantized checkpoint agrees with itself.
    control = None if sides.control is None or target != BASELINE else task_files(sides.control)
    with tempfile.TemporaryDirectory(prefix="sqtool-speculation-") as name:
        places = {side: Path(name) / side for side in ("reference", "arm", "control")}
        for place in places.values():
            place.mkdir()
        for task in tasks:
            if task not in reference:
                raise DataError(sides.of(target) / f"{task}.jsonl", "no such records", remedy="Evaluate the task.")
            theirs, ours = _ids(reference[task]), _ids(answered[task])
            wanted = theirs & ours if some_items else theirs if task in ended_early else None
            _take(reference[task], places["reference"] / f"{task}.jsonl", wanted)
            _take(answered[task], places["arm"] / f"{task}.jsonl", wanted)
            if control is not None and task in control:
                _take(control[task], places["control"] / f"{task}.jsonl", wanted)
        again = places["control"] if control is not None and any(places["control"].iterdir()) else None
        return compare(spec, places["reference"], places["arm"], control=again)


def _ids(path: Path) -> set[str]:
    return {str(json.loads(line)["id"]) for line in _lines(path)}


def _take(source: Path, to: Path, wanted: Collection[str] | None) -> None:
    """The records of the items in `wanted`, or all of them, as they are."""
    if wanted is None:
        to.symlink_to(source.resolve())
        return
    to.write_text("".join(line for line in _lines(source) if str(json.loads(line)["id"]) in wanted), encoding="utf-8")


def _lines(path: Path) -> Iterable[str]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                try:
                    json.loads(line)["id"]
                except (ValueError, KeyError, TypeError):
                    raise DataError(path, "expected a record with an id", line=number, field="id") from None
                yield line


def _broken(rule: Mapping[str, Any]) -> str:
    """Why one of the recipe's rules is not kept; one that could not be measured is not kept either."""
    kept = "is not kept" if rule["status"] == EXCEEDED else "is not shown to be kept"
    said = f"speculate.rules.{rule['rule']} at {rule['load']} {kept}"
    if rule["value"] is None:
        return f"{said}: {rule['reason']}"
    ends, limit = rule["judged_on"], f"the limit is {rule['limit']:.3g}"
    if ends is None:
        return f"{said}: {rule['value']:.3g}, {limit}: {rule['reason']}"
    said = f"{said}: {rule['value']:.3g} [{ends[0]:.3g}, {ends[1]:.3g}], {limit}"
    # An interval on one side of the limit does not say itself why it shows nothing.
    aside = rule["status"] == NOT_SHOWN and not ends[0] <= rule["limit"] < ends[1]
    return f"{said}: {rule['reason']}" if aside else said
