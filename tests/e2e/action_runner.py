"""Runs action.yml as GitHub's runner does, as far as it uses it: every `run` step in bash with the files and variables
of a job, outputs handed on, conditions evaluated. Steps of other people's actions (`uses`) are not run but noted, with
the outputs that they would have on a machine where Python is there and the cache is warm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"actions/setup-python": {"python-path": sys.executable}, "actions/cache/restore": {"cache-hit": "true"}}
_NAME = re.compile(r"\b(?:inputs|steps|runner|github)(?:\.[\w-]+)+")
_PLACE = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")


@dataclass
class Job:
    """One job with one step, this action, in the folder `workspace`."""

    workspace: Path
    temp: Path
    inputs: dict[str, str]
    steps: dict[str, dict[str, str]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    log: str = ""
    failed: bool = False
    code: int = 0

    def run(self) -> dict[str, str]:
        """The action's outputs; `code` is the exit code of the step that failed, 0 when none did."""
        action = YAML(typ="safe").load(ROOT / "action.yml")
        unknown = set(self.inputs) - set(action["inputs"])
        assert not unknown, f"no such input: {unknown}"
        defaults = {name: str(entry.get("default", "")) for name, entry in action["inputs"].items()}
        self.inputs = {**defaults, **self.inputs}
        for number, step in enumerate(action["runs"]["steps"]):
            condition = str(step.get("if", "success()"))
            if not self.true(condition if "always()" in condition else f"success() && ({condition})"):
                continue
            outputs = self.step(step, number) if "run" in step else self.elsewhere(step)
            if "id" in step:
                self.steps[step["id"]] = outputs
        return {name: self.filled(entry["value"]) for name, entry in action["outputs"].items()}

    def elsewhere(self, step: dict[str, Any]) -> dict[str, str]:
        given = {name: self.filled(str(value)) for name, value in step.get("with", {}).items()}
        name = step["uses"].partition("@")[0]
        self.used.append((name, given))
        return dict(ELSEWHERE.get(name, {}))

    def step(self, step: dict[str, Any], number: int) -> dict[str, str]:
        output, summary = self.temp / f"output-{number}", self.temp / "summary.md"
        output.touch()
        environment = {
            **os.environ,
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_REPOSITORY": "owner/name",
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
            **{name: self.filled(str(value)) for name, value in step.get("env", {}).items()},
        }
        folder = self.workspace / self.filled(step.get("working-directory", "."))
        script = self.temp / f"step-{number}.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", script],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.log += done.stdout
        if "id" in step:
            self.outcomes[step["id"]] = "failure" if done.returncode else "success"
        if done.returncode and not self.failed:
            self.failed, self.code = True, done.returncode
        return dict(line.split("=", 1) for line in output.read_text().splitlines())

    def value(self, name: str) -> str:
        first, _, rest = name.partition(".")
        if first == "inputs":
            return self.inputs[rest]
        if first == "steps":
            step, _, which = rest.partition(".")
            return self.outcomes.get(step, "") if which == "outcome" else self.steps.get(step, {}).get(which[8:], "")
        known = {"runner.temp": str(self.temp), "github.event_name": "push", "github.token": "", "github.event": ""}
        return known.get(name, "")

    def filled(self, text: str) -> str:
        return _PLACE.sub(lambda match: self.value(match[1]), text)

    def true(self, condition: str) -> bool:
        """Of GitHub's expressions: names, texts, ==, !=, &&, ||, brackets, always() and success()."""
        words = _NAME.sub(lambda match: repr(self.value(match[0])), condition)
        words = words.replace("always()", "True").replace("success()", str(not self.failed))
        return bool(eval(words.replace("&&", " and ").replace("||", " or "), {"__builtins__": {}}))
