"""Commands: what they print where, and how they exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sqtool.pipeline import Job
from sqtool.runfolder import RunFolder
from tests.cli.conftest import Sqtool
from tests.pipeline.fakes import HOLD, FakeSpec, calls

FakeJob = Callable[..., Job]
ROOT = Path(__file__).parents[2]


def test_unknown_command_and_recipe_suggest(sqtool_: Sqtool, tmp_path: Path) -> None:
    said = sqtool_("quantise")
    assert (said.code, said.out) == (2, "")
    assert "did you mean 'quantize'?" in said.err
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/awq4.yaml").touch()
    said = sqtool_("quantize", "awk4")
    assert said.code == 2
    assert said.err.splitlines() == ["Error: no such recipe: awk4", "  Did you mean 'awq4'?"]
    assert "did you mean `sqtool quantize x.yaml`?" in sqtool_("x.yaml").err


def test_a_bad_recipe_lists_every_problem(sqtool_: Sqtool, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modell: x\nseed: a\n")
    for command in ("quantize", "plan", "speculate", "eval"):
        said = sqtool_(command, "bad.yaml")
        assert (said.code, said.out) == (2, "")
        assert "the recipe has 3 problems:" in said.err
        assert "  bad.yaml:1: modell: unknown key (did you mean 'model'?)" in said.err
        assert "Traceback" not in said.err


def test_a_model_that_is_not_there(sqtool_: Sqtool, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: models/mine/deep\nquantize: {methods: [{awq: {}}]}\n")
    said = sqtool_("plan", "r.yaml")
    assert said.code == 2
    assert "model: no such folder: " in said.err
    (tmp_path / "models/mine/deep").mkdir(parents=True)
    assert "has no config.json" in sqtool_("plan", "r.yaml").err


def test_quantize_prints_the_verdict_and_where_the_report_is(sqtool_: Sqtool, fake_job: FakeJob) -> None:
    fake_job()
    said = sqtool_("quantize", "demo")
    assert said.code == 0
    assert said.out.startswith("RELEASED: demo (")
    assert "report: artifacts/runs/demo/report.md" in said.out
    assert "quantize: done in" in said.err
    assert "quantize: reused" in sqtool_("quantize", "demo").err


@pytest.mark.parametrize(("verdict", "code", "headline"), [("REGRESSED", 1, "REFUSED"), ("INCONCLUSIVE", 3, "INCONC")])
def test_exit_codes_are_the_gates(sqtool_: Sqtool, fake_job: FakeJob, verdict: str, code: int, headline: str) -> None:
    fake_job(gate=FakeSpec(outcome=verdict))
    said = sqtool_("quantize", "demo")
    assert said.code == code
    assert said.out.startswith(headline)
    assert headline.capitalize() in said.err.splitlines()[-1]
    assert "Error" not in said.err


def test_a_failure_is_one_message_with_remedy_and_log(sqtool_: Sqtool, fake_job: FakeJob, tmp_path: Path) -> None:
    fake_job(evaluate=FakeSpec(fail="engine"))
    said = sqtool_("quantize", "demo", "--quiet")
    assert said.code == 4
    assert said.err.splitlines() == [
        "Error: the engine died",
        "  Look at its log.",
        "  log: artifacts/runs/demo/run.log, what the stage left in artifacts/runs/demo/failed/evaluate",
    ]
    fake_job(evaluate=FakeSpec(fail="bug"))
    said = sqtool_("quantize", "demo")
    assert "Traceback" not in said.err + said.out
    assert "ZeroDivisionError" in (tmp_path / "artifacts/runs/demo/run.log").read_text()


def test_a_folder_that_cannot_be_written(sqtool_: Sqtool, fake_job: FakeJob, tmp_path: Path) -> None:
    fake_job()
    (tmp_path / "artifacts").write_text("a file, not a folder")
    said = sqtool_("quantize", "demo")
    assert said.code == 4
    assert said.err.startswith("Error: cannot write to ")
    assert "Traceback" not in said.err


def test_json_is_one_document_whatever_happens(sqtool_: Sqtool, fake_job: FakeJob) -> None:
    for sections, code in (
        ({}, 0),
        ({"gate": FakeSpec(outcome="REGRESSED")}, 1),
        ({"release": FakeSpec(fail="bug")}, 4),
    ):
        fake_job(**sections)
        said = sqtool_("quantize", "demo", "--json")
        assert said.code == code
        assert said.json["exit_code"] == code
        assert said.json["report"] == "artifacts/runs/demo/report.md"
        assert said.json["stages"][0]["name"] == "calibrate"


def test_quiet_and_log_file(sqtool_: Sqtool, fake_job: FakeJob, tmp_path: Path) -> None:
    fake_job()
    said = sqtool_("quantize", "demo", "-q", "--log-file", "logs/run.log")
    assert (said.code, said.err) == (0, "")
    text = (tmp_path / "logs/run.log").read_text()
    assert "INFO quantize: done in" in text


def test_until_and_force(sqtool_: Sqtool, fake_job: FakeJob, tmp_path: Path) -> None:
    fake_job()
    said = sqtool_("quantize", "demo", "--until", "gate")
    assert said.out.startswith("PASSED: demo")
    assert calls(tmp_path)[-1] == "gate"
    sqtool_("quantize", "demo", "--until", "gate", "--force", "evaluate", "--force", "calibrate")
    assert calls(tmp_path).count("calibrate") == 2
    said = sqtool_("quantize", "demo", "--until", "gat")
    assert (said.code, "did you mean 'gate'?" in said.err) == (2, True)
    assert sqtool_("speculate", "demo").code == 0
    assert calls(tmp_path)[-1] == "approve"


def test_plan_shows_and_runs_nothing(sqtool_: Sqtool, fake_job: FakeJob, tmp_path: Path) -> None:
    fake_job()
    said = sqtool_("plan", "demo", "--json")
    assert said.code == 0
    assert {stage["action"] for stage in said.json["stages"]} == {"run"}
    assert calls(tmp_path) == []
    assert not (tmp_path / "artifacts/runs").exists()
    sqtool_("quantize", "demo")
    said = sqtool_("plan", "demo")
    assert "everything is there: nothing to run" in said.out
    fake_job(speculate=FakeSpec(text="new"))
    said = sqtool_("plan", "demo")
    assert "recipe: speculate.text changed" in said.out
    assert "3 stages to run" in said.out


def test_plan_fails_for_what_would_fail(sqtool_: Sqtool, fake_job: FakeJob) -> None:
    fake_job(speculate=FakeSpec(data="gone.jsonl"))
    said = sqtool_("plan", "demo", "--json")
    assert said.code == 2
    assert "gone.jsonl" in said.json["problems"][0]["message"]


def test_report_again(sqtool_: Sqtool, fake_job: FakeJob) -> None:
    job = fake_job()
    sqtool_("quantize", "demo")
    folder = RunFolder.of(job.root, "demo")
    before = folder.report.read_text()
    folder.report.unlink()
    said = sqtool_("report", "demo")
    assert said.code == 0
    assert said.out.startswith("RELEASED: demo")
    assert folder.report.read_text() == before
    assert sqtool_("report", str(folder.path), "--markdown").out == before
    assert sqtool_("report", "demo", "--json").json["headline"] == "RELEASED"
    said = sqtool_("report", "dmo")
    assert (said.code, "Did you mean 'demo'?" in said.err) == (2, True)


def test_schema(sqtool_: Sqtool, tmp_path: Path) -> None:
    said = sqtool_("schema")
    assert "quantize" in said.json["properties"]
    assert sqtool_("schema", "--out", "s.json").code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == said.json
    assert sqtool_("schema", "--out", "no/such/s.json").code == 2
    task = sqtool_("schema", "--task").json
    assert {"task", "items", "scorer", "prompt"} <= task["properties"].keys()


def test_doctor(sqtool_: Sqtool, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqtool.doctor as doctor

    checks = [doctor.Check("python", True, "3.11"), doctor.Check("vLLM", False, "no .venv-vllm", "`make vllm`")]
    monkeypatch.setattr(doctor, "run_checks", lambda root: checks)
    said = sqtool_("doctor")
    assert said.code == 4
    assert said.out.splitlines()[1:3] == ["LACK  vLLM: no .venv-vllm", "      -> `make vllm`"]
    assert sqtool_("doctor", "--json").json["ok"] is False
    monkeypatch.setattr(doctor, "run_checks", lambda root: checks[:1])
    assert sqtool_("doctor").code == 0


@pytest.mark.parametrize(
    "args",
    [
        ("gate",),
        ("gate", "--baseline", "a"),
        ("gate", "run", "--baseline", "a", "--candidate", "b", "--task", "t"),
        ("gate", "demo", "--margin", "0"),
        ("eval",),
        ("eval", "demo", "--model", "m"),
        ("eval", "demo", "--task", "t"),
        ("quantize",),
        ("quantize", "demo", "--no-such-option"),
    ],
)
def test_wrong_usage_exits_2_and_says_how(sqtool_: Sqtool, args: tuple[str, ...]) -> None:
    said = sqtool_(*args)
    assert (said.code, said.out) == (2, "")
    assert "Error: " in said.err


def test_an_unexpected_error_is_one_line_and_a_file(sqtool_: Sqtool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("boom")

    monkeypatch.setattr("sqtool.recipe.find_recipe", broken)
    said = sqtool_("plan", "demo")
    assert said.code == 4
    assert said.err.startswith("Error: ValueError: boom\n")
    path = said.err.rpartition(" in ")[2].strip().rstrip(".")
    assert "Traceback" in Path(path + ("" if path.endswith(".log") else ".log")).read_text()


NOISY = """
import os, sys
from pathlib import Path
import sqtool.cli.runs
from sqtool import pipeline
import functools
from tests.pipeline import fakes
from tests.pipeline.fakes import make
real = make.run
def noisy(spec, inputs, out):
    print("library on stdout"); os.write(1, b"native on 1\\n"); os.write(2, b"native on 2\\n")
    os.system("echo child process")
    return real(spec, inputs, out)
make.run = noisy
job = fakes.make_job(Path(sys.argv[1]), "demo")
sqtool.cli.runs.load_job = lambda *_: job
pipeline.run = functools.partial(pipeline.run, stages=fakes.STAGES)
from sqtool.cli import main
main(sys.argv[2:])
"""


def test_what_libraries_print_goes_to_the_log(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOISY, str(tmp_path), "quantize", "demo", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 0
    assert "native" not in done.stderr
    assert "quantize: done" in done.stderr
    log = (tmp_path / "artifacts/runs/demo/run.log").read_text()
    for text in ("library on stdout", "native on 1", "native on 2", "child process"):
        assert text in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_cancel(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NOISY, str(tmp_path), "quantize", "demo"],
        cwd=ROOT, env={**os.environ, HOLD: "quantize"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),  # under nohup it is ignored
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "holding" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.startswith("CANCELLED: demo")
    assert "Cancelled: finished stages stay" in err
    assert not (tmp_path / "artifacts/runs/demo/quantize.tmp").exists()


def _into(stdout: int, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "sqtool", "schema"]
    try:
        return subprocess.run(words, cwd=ROOT, stdout=stdout, stderr=stderr, check=False, timeout=120)
    finally:
        os.close(stdout)


def test_a_result_that_cannot_be_written_is_a_failure_and_no_refusal() -> None:
    """click exits with 1 when the reader of a pipe has gone, and 1 is a verdict here."""
    reader, writer = os.pipe()
    os.close(reader)
    gone = _into(writer)
    assert (gone.returncode, gone.stderr) == (4, b"")
    full = _into(os.open("/dev/full", os.O_WRONLY))
    assert full.returncode == 4
    assert full.stderr == b"Error: the result cannot be written: No space left on device\n"


def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "sqtool", "plan", "none.yaml", "--root", str(tmp_path)]
    with os.fdopen(writer, "wb") as stderr:
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, check=False, timeout=120)
    assert done.returncode == 2


@pytest.mark.parametrize("error", [MemoryError(), ImportError("a.so: failed to map segment from shared object")])
def test_no_memory_before_a_run_is_no_defect(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqtool.cli

    def out_of_memory(**_: object) -> None:
        raise error

    monkeypatch.setattr(sqtool.cli.cli, "main", out_of_memory)
    assert sqtool.cli._call([]) == 4
    said = capsys.readouterr().err
    assert said.startswith("Error: out of memory\n")
    assert "defect" not in said
