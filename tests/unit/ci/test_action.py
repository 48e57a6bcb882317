"""action.yml and its scripts: valid, free of script injection, and what they do with what sqtool and gh answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "scripts/ci").glob("*.sh"))
ACTION = YAML(typ="safe").load(ROOT / "action.yml")
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
SHELL = [step for step in STEPS if "run" in step]


def test_it_is_a_composite_action() -> None:
    assert {"name", "description", "inputs", "outputs", "runs"} <= set(ACTION)
    assert ACTION["runs"]["using"] == "composite"
    assert ACTION["inputs"]["recipe"]["required"] is True
    for name, entry in {**ACTION["inputs"], **ACTION["outputs"]}.items():
        assert entry["description"], name
    for step in STEPS:
        assert ("run" in step) != ("uses" in step)
        assert set(step) <= {"id", "name", "if", "uses", "with", "shell", "env", "run", "working-directory"}


def test_every_run_has_a_shell_and_no_expression_in_its_text() -> None:
    assert SHELL
    for step in SHELL:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "a text from outside would be run as shell; hand it over in env"
        checked = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_expressions_name_inputs_and_outputs_that_exist() -> None:
    text = (ROOT / "action.yml").read_text()
    ids = {step["id"] for step in STEPS if "id" in step}
    assert set(re.findall(r"inputs\.([\w-]+)", text)) <= set(ACTION["inputs"])
    assert set(re.findall(r"steps\.([\w-]+)\.", text)) <= ids
    said = {step: set(re.findall(rf"steps\.{step}\.outputs\.([\w-]+)", text)) for step in ids}
    for step, script in (("quantize", "quantize.sh"), ("environments", "environments.sh")):
        written = set(re.findall(r"printf '([\w-]+)=%s\\n'", (ROOT / "scripts/ci" / script).read_text()))
        assert said[step] <= written
    assert said["report"] <= {"name", "outcome", "verdict", "exit_code", "report", "release", "speculation"}


def test_the_action_ends_with_the_exit_code_of_the_run() -> None:
    last = STEPS[-1]
    assert last["if"] == "always()"
    assert last["env"] == {"EXIT_CODE": "${{ steps.quantize.outputs.exit-code }}"}
    for code, expected in (("0", 0), ("1", 1), ("3", 3), ("130", 130), ("", 4)):
        done = subprocess.run(["bash", "-c", last["run"]], env={"EXIT_CODE": code}, check=False)
        assert done.returncode == expected


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash_and_used(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert os.access(script, os.X_OK)
    assert sum(script.name in step["run"] for step in SHELL) == 1


SQTOOL = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$1" in
  quantize) cat "$RESULT"; echo "progress ::error::from a log" >&2; exit "$CODE" ;;
  report)
    case "$*" in *"--format github"*) echo "outcome=refused" >>"$GITHUB_OUTPUT" ;; esac
    while [ $# -gt 0 ]; do if [ "$1" = --output ]; then echo made >"$2"; fi; shift; done ;;
esac
"""
GH = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
  *--paginate*) [ -z "$LISTED_FAILS" ] || exit 1; printf '%s' "$COMMENTS" ;;
esac
"""


class Runner:
    """A checkout with stand-ins for sqtool and gh that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls_file = folder, folder / "calls"
        for path in (*SCRIPTS, ROOT / "pyproject.toml", ROOT / "scripts/setup", *(ROOT / "constraints").glob("*.txt")):
            target = folder / "action" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            target.chmod(0o755)
        self.put(folder / "action/.venv/bin/sqtool", SQTOOL)
        self.put(folder / "action/.venv/bin/python", '#!/bin/sh\nexec python3 "$@"\n')
        self.put(folder / "bin/gh", GH)
        (folder / "temp").mkdir()
        self.output, self.summary = folder / "output", folder / "summary"

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_REPOSITORY": "owner/name",
            **environment,
        }
        path = self.folder / "action/scripts/ci" / script
        return subprocess.run(["bash", path], env=given, cwd=self.folder, text=True, capture_output=True, check=False)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    @property
    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def quantize(runner: Runner, result: str, code: str, recipe: str = "recipes/a.yaml") -> Any:
    (runner.folder / "result").write_text(result)
    return runner.run("quantize.sh", RECIPE=recipe, RESULT=str(runner.folder / "result"), CODE=code)


@pytest.mark.parametrize("code", ["0", "1", "3", "4"])
def test_the_exit_code_becomes_an_output(runner: Runner, code: str) -> None:
    done = quantize(runner, json.dumps({"root": "/p", "folder": "artifacts/runs/a"}), code)
    assert done.returncode == 0
    assert runner.outputs == {"exit-code": code, "folder": "/p/artifacts/runs/a"}
    assert runner.calls == ["quantize --json --root . -- recipes/a.yaml", "report --root . -- /p/artifacts/runs/a"]


def test_no_line_of_a_log_is_a_command(runner: Runner) -> None:
    lines = quantize(runner, "{}", "0").stdout.splitlines()
    stop = lines[0].removeprefix("::stop-commands::")
    assert re.fullmatch("[0-9a-f]{32}", stop)
    assert "progress ::error::from a log" in lines[1:-1], "on stdout, so that it stands before the token"
    assert lines[-1] == f"::{stop}::"


@pytest.mark.parametrize("result", ["", "no json", "[]", '{"exit_code": 2, "error": {}}'])
def test_a_recipe_that_cannot_be_read_has_no_folder(runner: Runner, result: str) -> None:
    quantize(runner, result, "2")
    assert runner.outputs == {"exit-code": "2", "folder": ""}
    done = runner.run("report.sh", FOLDER="", EXIT_CODE="2")
    assert done.returncode == 0
    assert done.stdout.startswith("::error title=sqtool::exit code 2 before there was a run")
    assert runner.outputs["outcome"] == "failed"
    assert "Exit code 2" in runner.summary.read_text()


def test_a_folder_cannot_add_an_output(runner: Runner) -> None:
    quantize(runner, json.dumps({"root": "/p", "folder": "a\nexit-code=0"}), "1")
    assert runner.outputs == {"exit-code": "1", "folder": "/p/a exit-code=0"}


def test_a_recipe_is_never_an_option_or_shell(runner: Runner) -> None:
    quantize(runner, "{}", "2", recipe='--force; $(touch x) "y')
    assert runner.calls == ['quantize --json --root . -- --force; $(touch x) "y']
    assert not (runner.folder / "x").exists()


def test_the_report_is_made_in_every_form(runner: Runner) -> None:
    folder = runner.folder / "run"
    (folder / "gate").mkdir(parents=True)
    (folder / "gate/verdict.json").write_text("{}")
    (folder / "run.json").write_text("{}")
    done = runner.run("report.sh", FOLDER=str(folder), EXIT_CODE="1")
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (runner.folder / "temp/sqtool").iterdir()}
    assert made == {"junit.xml", "comment.md", "report.md", "verdict.json", "run.json"}
    assert runner.outputs == {"outcome": "refused"}
    assert all(call.endswith(f"-- {folder}") for call in runner.calls)


def comment(runner: Runner, text: str = "<!-- sqtool:a -->\n## REFUSED: a\n", **environment: str) -> Any:
    (runner.folder / "temp/sqtool").mkdir()
    (runner.folder / "temp/sqtool/comment.md").write_text(text)
    return runner.run("comment.sh", PULL_REQUEST="7", **environment)


def test_the_first_comment_is_made(runner: Runner) -> None:
    assert comment(runner, COMMENTS="").returncode == 0
    calls = "\n".join(runner.calls)
    assert "-f owner=owner -f name=name -F number=7" in calls
    assert 'select(.viewerDidAuthor and (.body | startswith("<!-- sqtool:a -->"))) | .id' in calls
    assert runner.calls[-1].startswith("pr comment 7 --repo owner/name --body-file ")


def test_a_later_one_takes_its_place(runner: Runner) -> None:
    assert comment(runner, COMMENTS="IC_1\nIC_2\n").returncode == 0
    assert "updateIssueComment" in runner.calls[-1]
    assert " -f id=IC_1 -F body=@" in runner.calls[-1]
    assert not any(call.startswith("pr comment") for call in runner.calls)


def test_a_comment_that_cannot_be_written_is_a_warning(runner: Runner) -> None:
    done = comment(runner, LISTED_FAILS="1")
    assert done.returncode == 0
    assert (
        done.stdout == "::warning title=sqtool::the pull request got no comment; the job needs pull-requests: write\n"
    )


def test_a_text_without_a_marker_is_not_written(runner: Runner) -> None:
    assert comment(runner, text="hello\n").stdout.startswith("::warning")
    assert runner.calls == []


def test_the_key_changes_with_what_environments_are_made_from(runner: Runner) -> None:
    def key() -> str:
        assert runner.run("environments.sh", PYTHON="python3").returncode == 0
        return runner.outputs["key"]

    first = key()
    assert re.fullmatch(r"sqtool-environments-[0-9a-f]{24}", first)
    assert key() == first
    assert runner.outputs["vllm"] == str(runner.folder / "action/.venv-vllm")
    with (runner.folder / "action/constraints/sqtool.txt").open("a") as handle:
        handle.write("another==1\n")
    assert key() != first
