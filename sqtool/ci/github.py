"""GitHub Actions: annotations as workflow commands, the job summary and a step's outputs.

Commands and their escapes are those of the documented `::name key=value::data` form (actions/toolkit, command.ts);
a value that is not escaped could begin a command of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sqtool.ci.comment import comment
from sqtool.ci.run import CiRun
from sqtool.hygiene import clean

Level = Literal["error", "warning", "notice"]
SHOWN = 10
"""GitHub shows so many annotations of a level and step."""
SUMMARY, OUTPUT = "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"


def escape_data(text: str) -> str:
    """The message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """The value of a workflow command's property."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def annotation(level: Level, title: str, message: str) -> str:
    """One workflow command, one line."""
    return f"::{level} title={escape_property(_line(title))}::{escape_data(clean(message))}"


def annotate(run: CiRun) -> list[str]:
    """The run first, then each metric and slice that blocks, then those that only could not be decided."""
    facts = run.facts
    level: Level = "notice" if run.good else "error"
    said = [*facts.why, *([facts.remedy] if facts.remedy else [])]
    lines = [annotation(level, f"sqtool {facts.headline}: {run.name}", "\n".join(said) or facts.headline)]
    refused = [j for j in run.judged if j.effect == "refused"]
    allowed = [j for j in run.judged if j.effect == "allowed" and j.outcome == "INCONCLUSIVE"]
    room = SHOWN - (level == "error")
    lines += [annotation("error", f"{j.outcome}: {j.title}", j.sentence) for j in refused[:room]]
    lines += [annotation("warning", f"{j.outcome}: {j.title}", j.sentence) for j in allowed[:SHOWN]]
    return lines


def outputs(run: CiRun, report: Path) -> dict[str, str]:
    """A step's outputs. Texts are one line each, so that none can begin a further output."""
    values: dict[str, Any] = {
        "name": run.name,
        "outcome": run.outcome,
        "verdict": run.verdict.get("outcome", ""),
        "exit_code": "" if run.exit_code is None else run.exit_code,
        "report": report,
        "release": run.facts.release,
        "speculation": run.facts.speculation_status.removeprefix("speculation: "),
    }
    return {name: _line(value) for name, value in values.items()}


def publish(run: CiRun, report: Path, environment: Mapping[str, str]) -> list[str]:
    """Append summary and outputs to the files that the runner names; the names of those that it does not name."""
    texts = {
        SUMMARY: comment(run, marked=False) + "\n",
        OUTPUT: "".join(f"{name}={value}\n" for name, value in outputs(run, report).items()),
    }
    missing = []
    for variable, text in texts.items():
        path = environment.get(variable)
        if not path:
            missing.append(variable)
            continue
        with Path(path).open("a", encoding="utf-8") as handle:
            handle.write(text)
    return missing


def _line(value: Any) -> str:
    return " ".join(clean(str(value)).split())
