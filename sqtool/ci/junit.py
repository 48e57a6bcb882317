"""JUnit XML: a test case for each gated metric and slice (class: its task), and one for the run as a whole.

| gate | test case |
| --- | --- |
| PASS | passed |
| REGRESSED, or INCONCLUSIVE that is refused | failure |
| INCONCLUSIVE that the recipe or the slice's rule lets be, a slice not judged | skipped, with the reason |
| the run did not get to a verdict, or failed behind it | error in `run.outcome` |

`run.outcome` passes exactly when the run's exit code is 0, so a file without a failure never belongs to a red job.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from sqtool.ci.run import CiRun, Judged
from sqtool.hygiene import clean
from sqtool.report.verdict import worse_item

if TYPE_CHECKING:
    from junitparser import TestCase

RUN_CLASS, RUN_CASE = "run", "outcome"
MAX_ITEMS = 3
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(run: CiRun) -> str:
    """The run as one test suite."""
    from junitparser import JUnitXml, TestSuite

    suite = TestSuite(f"sqtool {_line(run.name)}")
    suite.timestamp = _line(run.started)
    for name, value in _properties(run):
        suite.add_property(_line(name), _line(value))
    suite.add_testcases([_whole(run), *_cases(run)])
    root = JUnitXml("sqtool")
    root.add_testsuite(suite)
    root.update_statistics()  # type: ignore[no-untyped-call]
    written = io.BytesIO()
    root.write(written)
    return written.getvalue().decode() + "\n"


def _properties(run: CiRun) -> list[tuple[str, Any]]:
    facts = run.facts
    pairs = [
        ("outcome", run.outcome),
        ("verdict", run.verdict.get("outcome", "")),
        ("exit_code", "" if run.exit_code is None else run.exit_code),
        ("recipe", facts.recipe),
        ("model", facts.model),
        ("release", facts.release),
        ("alpha", run.verdict.get("alpha", "")),
        ("speculation", facts.speculation_status.removeprefix("speculation: ")),
        *((f"measured.{name}", text) for name, text in facts.measured),
        *((f"diagnostic.{metric}", figures) for metric, figures in run.diagnostic),
    ]
    return [(name, value) for name, value in pairs if value != ""]


def _whole(run: CiRun) -> TestCase:
    from junitparser import Error, Failure, TestCase

    # All but answering the tasks, which the other cases have: the suite's sum is what the stages took.
    case = TestCase(RUN_CASE, RUN_CLASS, round(max(0.0, run.stage_seconds - sum(run.task_seconds.values())), 3))
    facts = run.facts
    if not run.good:
        message = _line(run.error.get("message") or "; ".join(facts.why) or "the run has not ended")
        kind = _line(run.verdict.get("outcome") if run.gate_decided else run.error.get("type") or run.outcome)
        # A refusal is a result of the test; anything else means that there is none.
        result = (Failure if run.exit_code in (1, 3) else Error)(message, kind)
        stage = f"stage {run.stopped_in}: {run.outcome}" if run.stopped_in else ""
        result.text = _text("\n".join(line for line in (message, facts.remedy, stage) if line))
        case.result = result
    said = [f"{facts.headline}: {run.name}", *facts.why, *facts.caveats, *facts.saves, *facts.speculation]
    said += [f"not gated: {metric} {figures}" for metric, figures in run.diagnostic]
    said += [f"repeat: {command}" for command in run.repeat]
    case.system_out = _text("\n".join(said))
    return case


def _cases(run: CiRun) -> list[TestCase]:
    from junitparser import Failure, Skipped, TestCase

    cases = []
    left = dict(run.task_seconds)
    for judged in run.judged:
        # A task is answered once for all of its metrics: its time counts once.
        case = TestCase(_line(judged.name), _line(judged.task), left.pop(judged.task, None))
        if judged.effect == "refused":
            failure = Failure(_line(judged.sentence), _line(judged.outcome))
            failure.text = _text("\n".join([judged.sentence, *_items(judged)]))
            case.result = failure
        elif judged.effect != "passed":
            case.result = Skipped(_line(f"does not block: {judged.sentence}"), _line(judged.outcome))
        case.system_out = _text(judged.sentence)
        cases.append(case)
    return cases


def _items(judged: Judged) -> list[str]:
    lines = []
    for raw in judged.worst[:MAX_ITEMS]:
        item = worse_item(judged.title, raw)
        lines += [
            f"got worse: {item.id}" + (f" ({item.kind})" if item.kind else ""),
            f"  expected:  {_line(item.expected)}",
            f"  baseline:  {_line(item.baseline)}",
            f"  candidate: {_line(item.candidate)}",
        ]
    return lines


def _text(value: Any) -> str:
    """Without what XML 1.0 cannot hold, not even escaped."""
    return _NOT_XML.sub("\ufffd", clean(str(value)))


def _line(value: Any) -> str:
    return " ".join(_text(value).split())
