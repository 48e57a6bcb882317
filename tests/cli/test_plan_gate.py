"""`plan`: what the gate could decide, and pilots. Real pipeline and gate; contract doubles of engine and quantizer."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import evals.run
import quantize.run
from evals.engine_env import VllmEnv
from evals.items import take
from sqtool.errors import EngineError
from sqtool.gate.power import items_needed, power_to_pass
from sqtool.runfolder import RunFolder
from tests.cli.conftest import Sqtool

ITEMS = 400
RECIPE = """\
name: mine
model: models/bf16
draft: null
quantize: {methods: [{fp8: {}}]}
evaluate: {tasks: [quiz]}
gate:
  metrics: {quiz.exact_match: 0.02}
  slices: [{field: n_words, bins: [2, 9], require: pass}]
"""


class Machine:
    """The doubles: what they were asked, and how they answer."""

    def __init__(self) -> None:
        self.quantized: list[str] = []
        self.asked: list[tuple[str, int]] = []
        self.wrong_every = 50
        self.engine_dies = False


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A project with one model, one task of 400 items and the recipe `mine.yaml`; the candidate answers every 50th
    item wrong."""
    this = Machine()
    (tmp_path / "models/bf16").mkdir(parents=True)
    (tmp_path / "models/bf16/config.json").write_text("{}")
    (tmp_path / "models/bf16/model.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"{}")
    (tmp_path / "evals/tasks").mkdir(parents=True)
    (tmp_path / "evals/tasks/quiz.yaml").write_text("task: quiz\nitems: quiz.jsonl\nscorer: exact_match\n")
    items = [
        {
            "id": f"q{n}",
            "kind": "quiz",
            "messages": [{"role": "user", "content": f"{n}?"}],
            "expected": {"text": str(n)},
            "fields": {"n_words": n % 4},
        }
        for n in range(ITEMS)
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    evaluate_signature = inspect.signature(evals.run.evaluate)
    quantize_signature = inspect.signature(quantize.run.quantize)

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, Any]:
        given = evaluate_signature.bind(*args, **kwargs).arguments
        model, out, chosen = given["model"], given["out"], take(items, given["spec"].limit)
        this.asked.append((model.name, len(chosen)))
        if this.engine_dies:
            raise EngineError("the engine died", remedy="Look at its log.")
        (out / "records").mkdir()
        lines = [
            {**{k: item[k] for k in ("id", "kind", "fields")}, "task": "quiz", "output": {},
             "scores": {"exact_match": float(model.name == "bf16" or place % this.wrong_every > 0)}}
            for place, item in enumerate(chosen)
        ]  # fmt: skip
        (out / "records/quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        mean = {"n": len(chosen), "metrics": {"exact_match": 1.0}}
        return {"engine": {"engine": "vllm"}, "tasks": {"quiz": {**mean, "by_kind": {"quiz": mean}}}}

    def quantize_(*args: Any, **kwargs: Any) -> dict[str, Any]:
        out = quantize_signature.bind(*args, **kwargs).arguments["out"]
        this.quantized.append(out.parent.name)
        (out / "checkpoint").mkdir()
        (out / "checkpoint/config.json").write_text("{}")
        return {"bytes_after": 1}

    def control(*_args: Any, baseline: Path, out: Path, **_kwargs: Any) -> dict[str, Any]:
        shutil.copytree(baseline / "records", out / "records")
        return {"different_answers": 0}

    monkeypatch.setattr(evals.run, "evaluate", evaluate)
    monkeypatch.setattr("evals.control.control", control)
    monkeypatch.setattr("quantize.run.quantize", quantize_)
    monkeypatch.setattr("quantize.plan.plan", lambda *_, **__: {"seconds": 5.0, "bytes_after": 1})
    monkeypatch.setattr("evals.engine_env.locate", lambda _: VllmEnv(tmp_path, tmp_path / "vllm", "cpu", "0.32.0+cpu"))
    for name in ("baseline", "control", "evaluate"):
        monkeypatch.setattr(f"sqtool.stages.{name}.engine_preflight", lambda *_: None)
    monkeypatch.setattr("evals.drift.texts_of", lambda *_, **__: [])
    monkeypatch.setattr("evals.drift.baseline_states", lambda *_, **__: {})
    monkeypatch.setattr("evals.drift.drift", lambda *_, **__: {})
    return this


def gate_of(document: Any) -> dict[str, Any]:
    (stage,) = (stage for stage in document["stages"] if stage["name"] == "gate")
    return dict(stage["details"]["gate"])


def cells(text: str, first: str) -> list[list[str]]:
    """Rows of a table that begin with `first`, split at two or more blanks."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in text.splitlines()
        if line.strip().startswith(first)
    ]


def test_plan_says_what_the_gate_can_decide(sqtool_: Sqtool, machine: Machine) -> None:
    said = sqtool_("plan", "mine.yaml")
    assert said.code == 0, said.err
    chance, needed = power_to_pass(ITEMS, 0.02, 0.01), items_needed(0.02, 0.01)
    (row,) = cells(said.out, "quiz.exact_match  ")
    assert (row[:5], row[6]) == (["quiz.exact_match", "400", "2.00", "1 %", f"{100 * chance:.1f} %"], f"{needed:,}")
    assert "The gated metric" in said.out
    assert cells(said.out, "n_words=")[0] == ["n_words=up to 2", "quiz.exact_match", "300", "pass", "yes"]
    assert cells(said.out, "n_words=over 2")[0][-1] == "not judged: needs 149 items"
    assert "warning: the gate cannot PASS: quiz.exact_match[n_words=over 2, up to 9] has 100 items" in said.out
    assert machine.asked == machine.quantized == []
    document = sqtool_("plan", "mine.yaml", "--json").json
    gate = gate_of(document)
    assert document["warnings"] == gate["warnings"] != []
    assert (document["pilot"], document["last_run"]) == (None, None)
    assert gate["power"]["rows"][0]["power_to_pass"] == chance
    assert gate["power"]["all_pass"][0]["at_least"] < chance, "the slices must pass as well"


def test_plan_says_when_a_limit_leaves_too_few(sqtool_: Sqtool, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        RECIPE.partition("  slices")[0].replace("tasks: [quiz]", "tasks: [quiz], limit: 50")
    )
    said = sqtool_("plan", "mine.yaml")
    assert said.code == 0, "a warning, no error"
    assert (
        "warning: the gate cannot PASS: quiz.exact_match has 50 items, and a margin of 2 points needs at least 149 "
        "even if no answer changes"
    ) in said.out
    run = sqtool_("quantize", "mine.yaml", "--until", "baseline")
    assert "warning:" not in run.err, "nothing will be judged"
    run = sqtool_("quantize", "mine.yaml", "--until", "gate")
    assert "warning: the gate cannot PASS" in run.err.partition("quantize: starting")[0], "before anything runs"
    assert run.code == 3


def test_a_bad_slice_field_is_found_before_anything_runs(sqtool_: Sqtool, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("n_words", "n_wrds"))
    said = sqtool_("plan", "mine.yaml")
    assert said.code == 2
    assert "quiz.jsonl: n_wrds: is in gate.slices, and no item that is scored has it" in said.err
    assert "did you mean 'n_words'?" in said.err
    assert sqtool_("plan", "mine.yaml", "--pilot", "10").code == 2
    assert machine.asked == machine.quantized == []


def test_a_pilot_measures_and_the_run_goes_on_from_its_checkpoint(
    sqtool_: Sqtool, machine: Machine, tmp_path: Path
) -> None:
    said = sqtool_("plan", "mine.yaml", "--pilot", "100")
    assert said.code == 0, said.err
    assert "pilot: runs quantize, baseline, evaluate on 100 items of each task as run mine-pilot, about " in said.err
    assert "pilot: the checkpoint is made as run mine, which uses it later" in said.err
    assert (machine.quantized, machine.asked) == (["mine"], [("bf16", 100), ("checkpoint", 100)])
    (row,) = cells(said.out.partition("Measured by the pilot, 100 items of each task")[2], "quiz.exact_match")
    assert row[:3] == ["quiz.exact_match", "100", "0/2"]
    assert row[3].startswith("2.00 % (0.36 to ")
    assert row[4] == "-2.00"
    assert row[5].startswith(f"{100 * power_to_pass(ITEMS, 0.02, 0.02):.1f} % / ")
    stages = {stage["name"]: stage["action"] for stage in sqtool_("plan", "mine.yaml", "--json").json["stages"]}
    assert (stages["quantize"], stages["baseline"], stages["evaluate"]) == ("cached", "run", "run")
    folder = RunFolder.of(tmp_path, "mine-pilot")
    assert folder.state()["until"] == "evaluate"
    assert {p.name for p in folder.path.iterdir() if p.is_dir()} == {"evaluate"}
    assert json.loads(folder.recipe_json.read_text())["evaluate"]["drift"] is None

    again = sqtool_("plan", "mine.yaml", "--pilot", "100", "--json")
    assert "measured before" in again.err
    assert len(machine.asked) == 2, "from the cache"
    pilot = again.json["pilot"]
    assert (pilot["run"], pilot["items_per_task"], pilot["exit_code"], pilot["error"]) == ("mine-pilot", 100, 0, None)
    (metric,) = pilot["measured"]["metrics"]
    assert (metric["items"], metric["worsened"], metric["discordance"]) == (100, 2, 0.02)
    assert metric["at_estimate"]["items"] == ITEMS
    sqtool_("quantize", "mine.yaml", "--until", "gate")
    assert machine.quantized == ["mine"], "the checkpoint was made once"
    assert machine.asked[2:] == [("bf16", ITEMS), ("checkpoint", ITEMS)]


def test_a_pilot_never_asks_more_than_the_recipe(sqtool_: Sqtool, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("tasks: [quiz]", "tasks: [quiz], limit: 40"))
    assert sqtool_("plan", "mine.yaml", "--pilot", "100", "--json").json["pilot"]["items_per_task"] == 40
    assert machine.asked == [("bf16", 40), ("checkpoint", 40)]


def test_a_pilot_of_a_finished_checkpoint(sqtool_: Sqtool, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "models/w4").mkdir()
    (tmp_path / "models/w4/config.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("methods: [{fp8: {}}]", "checkpoint: models/w4"))
    said = sqtool_("plan", "mine.yaml", "--pilot", "20")
    assert said.code == 0, said.err
    assert (machine.quantized, machine.asked) == ([], [("bf16", 20), ("w4", 20)])
    assert not (tmp_path / "artifacts/runs/mine").exists(), "the recipe itself did not run"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_pilot_that_fails(sqtool_: Sqtool, machine: Machine, as_json: bool) -> None:
    machine.engine_dies = True
    said = sqtool_("plan", "mine.yaml", "--pilot", "20", *(["--json"] if as_json else []))
    assert said.code == 4
    assert "Error: the engine died" in said.err
    assert "log: artifacts/runs/mine-pilot/run.log" in said.err
    if as_json:
        assert (said.json["pilot"]["exit_code"], said.json["pilot"]["measured"]) == (4, None)
        assert said.json["pilot"]["error"]["message"] == "the engine died"
    else:
        assert "Measured by the pilot" not in said.out


def test_the_last_run_is_a_pilot_for_nothing(sqtool_: Sqtool, machine: Machine, tmp_path: Path) -> None:
    machine.wrong_every = 100
    sqtool_("quantize", "mine.yaml", "--until", "gate")
    said = sqtool_("plan", "mine.yaml")
    (row,) = cells(said.out.partition("Measured in the last run")[2], "quiz.exact_match")
    assert row[:3] == ["quiz.exact_match", "400", "0/4"]
    document = sqtool_("plan", "mine.yaml", "--json").json
    assert gate_of(document)["metrics"][0]["counted"] == "baseline"
    assert document["last_run"]["metrics"][0]["discordance"] == 0.01
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("0.02", "0.05"))
    said = sqtool_("plan", "mine.yaml", "--json").json
    assert said["last_run"]["metrics"][0]["at_estimate"]["margin"] == 0.05, "the records hold, the margin is new"
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("tasks: [quiz]", "tasks: [quiz], limit: 50"))
    assert sqtool_("plan", "mine.yaml", "--json").json["last_run"] is None, "those were other items"


def test_a_run_whose_shared_records_were_removed_is_not_taken_for_whole(
    sqtool_: Sqtool, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE.partition("  slices")[0])
    machine.wrong_every = ITEMS
    assert sqtool_("quantize", "mine.yaml", "--until", "gate").code == 0
    for records in tmp_path.rglob("records"):
        shutil.rmtree(records)
    said = sqtool_("plan", "mine.yaml", "--until", "gate")
    assert (said.code, "`--force baseline` measures it again" in said.err, "Measured" in said.out) == (4, True, False)


@pytest.mark.parametrize(
    "args", [("--pilot", "0"), ("--pilot", "5", "--until", "gate"), ("--pilot", "5", "--force", "x")]
)
def test_wrong_usage(sqtool_: Sqtool, machine: Machine, args: tuple[str, ...]) -> None:
    said = sqtool_("plan", "mine.yaml", *args)
    assert (said.code, said.out, machine.asked) == (2, "", [])
    assert "--pilot" in said.err


def test_relative_margins_and_unknown_metrics_are_told(sqtool_: Sqtool, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        RECIPE.partition("  slices")[0].replace(
            "quiz.exact_match: 0.02", "quiz.exact_match: {relative: 0.05}, quiz.x: 0.1"
        )
    )
    said = sqtool_("plan", "mine.yaml")
    assert said.code == 0, said.err
    assert cells(said.out, "quiz.exact_match  ")[0][2:] == ["relative", "when the baseline is known"]
    assert cells(said.out, "quiz.x  ")[0][1] == "at most 400"
    assert "note: quiz.exact_match: a relative margin is planned when the baseline is known" in said.out
