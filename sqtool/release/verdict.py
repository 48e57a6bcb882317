"""May this verdict release this checkpoint? The only question that the release stage asks of the gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.errors import DataError, InconclusiveError, RegressedError
from sqtool.runfolder import RESULT, read_result

if TYPE_CHECKING:
    from sqtool.gate.verdict import MetricVerdict, Verdict

CANDIDATE_DIGEST = "candidate_digest"
"""Key in the verdict's bindings: `sqtool.files.digest_folder` of the checkpoint that was measured."""
RERUN = "Run `sqtool quantize` again: the gate judges in seconds from the records that are there."
ROUNDING = 1e-9
Records = tuple[Path, Path, Path | None]
"""Folders of what a verdict rests on: baseline, candidate, and the A/A control where there was one."""


def bound_digest(verdict: dict[str, Any]) -> str | None:
    """The digest of the checkpoint that a verdict (as JSON value) was given for; None when it names none."""
    bindings = verdict.get("bindings")
    value = bindings.get(CANDIDATE_DIGEST) if isinstance(bindings, dict) else None
    return value if isinstance(value, str) and value else None


def read_accepted(path: Path, text: str, *, records: Records | None = None) -> Verdict:
    """The verdict in `text` (read from `path`), if it lets the candidate be released.

    Raises `RegressedError` or `InconclusiveError` when it does not, `DataError` when it is no verdict, contradicts
    itself, or, given the records it rests on, is not what the gate computes from them.
    """
    from sqtool.gate.judge import judge
    from sqtool.gate.verdict import Verdict

    try:
        verdict = Verdict.from_json(text)
    except ValueError as error:  # pydantic's ValidationError is one
        raise DataError(path, f"is no verdict of the gate: {error}", remedy=RERUN) from None
    contradictions = _contradictions(verdict)
    if contradictions:
        raise DataError(path, f"the verdict contradicts itself: {'; '.join(contradictions)}", remedy=RERUN)
    if records is not None:
        from sqtool.gate.spec import GateSpec

        baseline, candidate, control = records
        rules = GateSpec.model_validate(verdict.spec)
        differences: list[Any] = [one.model_dump(exclude={"allowed"}) for one in verdict.differences]
        measured = read_result(candidate.parent)
        if measured is not None:  # what the evaluation found, not what the verdict says that it found
            summary = measured.get("summary")
            found = summary.get("differences", []) if isinstance(summary, dict) else []
            if not isinstance(found, list):
                raise DataError(candidate.parent / RESULT, "must be a list", field="summary.differences", remedy=RERUN)
            differences = found
        try:
            again = judge(
                rules, baseline, candidate, control=control, bindings=verdict.bindings, differences=differences
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DataError(path, f"cannot be computed from the records ({type(error).__name__}: {error})") from None
        if again.to_json() != text:
            raise DataError(path, "the verdict is not what the gate computes from the records", remedy=RERUN)
    if verdict.outcome == "REGRESSED":
        raise RegressedError(
            f"nothing is released: the verdict is REGRESSED ({'; '.join(verdict.reasons)})",
            remedy="report.md of the run says which items got worse.",
        )
    if not verdict.accepted:
        more = "Measure more items, or accept the risk with `gate: {inconclusive: allow}`."
        steadier = "No verdict is possible on an engine that does not agree with itself: fix what varies, run again."
        raise InconclusiveError(
            f"nothing is released: the verdict is {verdict.outcome} ({'; '.join(verdict.reasons)})",
            remedy=more if verdict.undecided else steadier,
        )
    return verdict


def check_rules(path: Path, verdict: Verdict, rules: Mapping[str, Any]) -> None:
    """`DataError` unless the verdict was judged by `rules`, the recipe's gate section."""
    from sqtool.gate.spec import GateSpec

    wanted = GateSpec.model_validate(rules).model_dump(mode="json")
    differ = sorted(key for key in {**wanted, **verdict.spec} if wanted.get(key) != verdict.spec.get(key))
    if differ:
        named = ", ".join(f"gate.{key}" for key in differ)
        raise DataError(
            path, f"was not judged by this recipe: {named} changed since", remedy="Run `sqtool quantize` again."
        )


def _contradictions(verdict: Verdict) -> list[str]:
    """Where the outcome does not follow from the metrics, or a metric's not from its numbers."""
    from sqtool.gate.spec import GateSpec

    found: list[str] = []
    try:
        spec = GateSpec.model_validate(verdict.spec)
    except ValueError as error:
        return [f"its spec is no gate section: {error}"]
    gated = [m for m in verdict.metrics if m.gated]
    missing = set(spec.gated) ^ {m.metric for m in gated} ^ set(verdict.not_measured)
    if missing or len(gated) + len(verdict.not_measured) != len(spec.gated):
        found.append(f"gated metrics are not those of its spec: {', '.join(sorted(missing)) or 'one is there twice'}")
    if (spec.inconclusive, spec.alpha) != (verdict.inconclusive, verdict.alpha):
        found.append("`inconclusive` or `alpha` differ from its spec")
    for metric in gated:
        rule = spec.metrics.get(metric.metric)
        if rule is not None:
            margin = rule.absolute_margin
            wanted = (rule.relative or 0.0) * metric.baseline if margin is None else margin
            if not abs(metric.margin - wanted) <= ROUNDING:  # so that NaN is none
                found.append(f"{metric.name}: the margin is {metric.margin}, its spec says {wanted}")
    judged = [*gated, *verdict.slices]
    for metric in judged:
        found += _wrong_numbers(metric)
    regressed = any(m.outcome == "REGRESSED" for m in judged)
    unsure = any(m.outcome != "PASS" for m in judged if m.require == "pass") or verdict.not_measured
    if verdict.control is not None and not verdict.control.stable:
        regressed, unsure = False, True
    for found_difference in verdict.differences:
        if found_difference.allowed != (found_difference.name in spec.allow_differences):
            found.append(f"its spec does not say whether {found_difference.name} may differ")
    regressed = regressed or any(not d.allowed for d in verdict.differences)
    follows = "REGRESSED" if regressed else "INCONCLUSIVE" if unsure else "PASS"
    if verdict.outcome != follows:
        found.append(f"the outcome is {verdict.outcome}, its metrics say {follows}")
    return found


def _wrong_numbers(metric: MetricVerdict) -> list[str]:
    found = []
    sign = 1.0 if metric.direction == "higher" else -1.0
    if not abs(metric.difference - sign * (metric.candidate - metric.baseline)) <= ROUNDING:
        found.append(f"{metric.name}: the difference is not candidate minus baseline")
    if not metric.lower - ROUNDING <= metric.difference <= metric.upper + ROUNDING:
        found.append(f"{metric.name}: the difference is outside its interval")
    if metric.outcome == "PASS" and not metric.lower > -metric.margin - ROUNDING:
        found.append(f"{metric.name}: PASS, and its lower bound is past the margin")
    return found
