"""The records that a verdict rests on, as they lie in a release, so that anybody can compute the verdict again.

evidence/baseline/records/<task>.jsonl     evidence/control/records/<task>.jsonl (where there was an A/A control)
evidence/evaluate/records/<task>.jsonl     evidence/evaluate/result.json: what differed beside the weights
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sqtool.errors import DataError
from sqtool.release.verdict import RERUN, Records
from sqtool.runfolder import RESULT, read_result

if TYPE_CHECKING:
    from sqtool.gate.verdict import Verdict

EVIDENCE = "evidence"
SIDES = ("baseline", "evaluate", "control")
INNER = "records"


def evidence_files(records: Records) -> dict[str, Path]:
    """Name in the release -> file, of every records file."""
    from sqtool.gate.records import task_files

    return {
        f"{EVIDENCE}/{side}/{INNER}/{task}.jsonl": path
        for side, folder in zip(SIDES, records, strict=True)
        if folder is not None
        for task, path in sorted(task_files(folder).items())
    }


def found_differences(records: Records, verdict: Verdict) -> str:
    """The text of evidence/evaluate/result.json: what the evaluation found, else what the verdict says that it did."""
    measured = read_result(records[1].parent)
    found = [difference.model_dump(exclude={"allowed"}) for difference in verdict.differences]
    if measured is not None:
        found = list(measured["summary"].get("differences", ()))
    return json.dumps({"summary": {"differences": found}}, indent=2, ensure_ascii=False) + "\n"


RESULT_FILE = f"{EVIDENCE}/evaluate/{RESULT}"


def check_copied(path: Path, verdict: Verdict, hashes: Mapping[str, str]) -> None:
    """`DataError` unless what was copied (name -> sha256) is what the verdict was computed from."""
    for side, folder in (("baseline", "baseline"), ("candidate", "evaluate")):
        for task, found in verdict.inputs[side].items():
            copied = hashes.get(f"{EVIDENCE}/{folder}/{INNER}/{task}.jsonl")
            if copied != found.sha256:
                raise DataError(
                    path, f"the {side}'s records of {task} are not those that the verdict rests on", remedy=RERUN
                )


def evidence_in(folder: Path) -> Records | None:
    """The records in a release; None when it holds none."""
    baseline, candidate, control = (folder / EVIDENCE / side / INNER for side in SIDES)
    if not baseline.is_dir() or not candidate.is_dir():
        return None
    return baseline, candidate, control if control.is_dir() else None
