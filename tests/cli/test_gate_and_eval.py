"""`gate` and `eval`: the real gate and pipeline; only the engine is a contract double that answers from a table."""

from __future__ import annotations

import inspect
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import evals.run
from evals.engine_env import VllmEnv
from evals.spec import EngineSpec
from sqtool import pipeline
from sqtool.cli.evaluate import _to_the_end, scores
from sqtool.files import read_json
from sqtool.gate.spec import GateSpec
from sqtool.runfolder import RunFolder
from tests.cli.conftest import Sqtool
from tests.pipeline.fakes import STAGES, make_job

ITEMS = 400
engines: list[EngineSpec] = []
"""What the double was asked with."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """`project(wrong)`: two models and a task; the candidate answers `wrong` of 400 items wrong. Returns calls."""
    for name in ("bf16", "w4a16"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
        # No tensor, and a note that tells one model from another.
        header = f'{{"__metadata__":{{"name":"{name}"}}}}'.encode()
        (tmp_path / "models" / name / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "evals/tasks").mkdir(parents=True)
    (tmp_path / "evals/tasks/quiz.yaml").write_text("task: quiz\nitems: quiz.jsonl\nscorer: exact_match\n")
    items = [
        {
            "id": f"q{n}",
            "kind": "quiz",
            "messages": [{"role": "user", "content": f"{n}?"}],
            "expected": {"text": str(n)},
        }
        for n in range(ITEMS)
    ]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    asked: list[str] = []
    engines.clear()
    signature = inspect.signature(evals.run.evaluate)

    def use(wrong: int) -> list[str]:
        def evaluate(*args: Any, **kwargs: Any) -> dict[str, Any]:
            given = signature.bind(*args, **kwargs).arguments
            model, out = given["model"], given["out"]
            asked.append(model.name)
            engines.append(given["engine"])
            bad = wrong if model.name == "w4a16" else 0
            (out / "records").mkdir()
            lines = [
                {
                    "task": "quiz",
                    "id": f"q{n}",
                    "kind": "quiz",
                    "scores": {"exact_match": float(n >= bad)},
                    "output": {},
                }
                for n in range(ITEMS)
            ]
            (out / "records/quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            mean = {"n": ITEMS, "metrics": {"exact_match": 1 - bad / ITEMS}}
            return {"engine": {"engine": "vllm"}, "tasks": {"quiz": {**mean, "by_kind": {"quiz": mean}}}}

        def control(*_args: Any, baseline: Path, out: Path, **_kwargs: Any) -> dict[str, Any]:
            shutil.copytree(baseline / "records", out / "records")
            return {"different_answers": 0}

        monkeypatch.setattr(evals.run, "evaluate", evaluate)
        monkeypatch.setattr("evals.control.control", control)
        return asked

    env = VllmEnv(tmp_path, tmp_path / "vllm", "cpu", "0.32.0+cpu")
    monkeypatch.setattr("evals.engines.vllm.locate", lambda _: env)
    return use


GATE = ("gate", "--baseline", "models/bf16", "--candidate", "models/w4a16", "--task", "quiz")


@pytest.mark.parametrize(("wrong", "code", "headline"), [(0, 0, "PASSED"), (80, 1, "REFUSED"), (4, 3, "INCONCLUSIVE")])
def test_gate_without_a_recipe(
    sqtool_: Sqtool, project: Callable[[int], list[str]], wrong: int, code: int, headline: str
) -> None:
    asked = project(wrong)
    said = sqtool_(*GATE)
    assert said.code == code, said.err
    assert said.out.startswith(headline)
    assert "quiz.exact_match" in said.out
    assert asked == ["bf16", "w4a16"]
    again = sqtool_(*GATE, "--json")
    assert (again.code, asked) == (code, ["bf16", "w4a16"]), "the second time from the cache"
    assert again.json["results"]["gate"]["outcome"] in ("PASS", "REGRESSED", "INCONCLUSIVE")


def test_gate_again_from_records_alone(sqtool_: Sqtool, project: Callable[[int], list[str]], tmp_path: Path) -> None:
    asked = project(4)
    assert sqtool_(*GATE).code == 3
    (run,) = (path.name for path in (tmp_path / "artifacts/runs").iterdir())
    assert run.startswith("gate-w4a16-")
    before = RunFolder.of(tmp_path, run).run_json.read_text()
    said = sqtool_("gate", run)
    assert said.code == 3
    line = said.out.splitlines()[1]
    assert line.startswith("  quiz.exact_match: 100.00 % -> 99.00 %, dropped 1.00 points, interval [")
    assert sqtool_("gate", run, "--margin", "0.05").code == 0
    assert sqtool_("gate", run, "--json", "--margin", "0.05").json["outcome"] == "PASS"
    assert RunFolder.of(tmp_path, run).run_json.read_text() == before, "nothing is written"
    assert asked == ["bf16", "w4a16"]


def test_a_run_that_was_copied_is_judged_by_its_own_records(
    sqtool_: Sqtool, project: Callable[[int], list[str]], tmp_path: Path
) -> None:
    project(4)
    sqtool_(*GATE)
    (run,) = (path.name for path in (tmp_path / "artifacts/runs").iterdir())
    copied = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "artifacts", copied / "artifacts", symlinks=True)
    records = copied / "artifacts/runs" / run / "evaluate/records/quiz.jsonl"
    records.write_text(records.read_text().split("\n", 1)[1])
    assert sqtool_("gate", run).code == 3, "the original is as it was"
    said = sqtool_("gate", run, "--root", str(copied))
    assert said.code == 2
    assert "quiz" in said.err


@pytest.mark.parametrize(("wrong", "word"), [(0, "PASS"), (80, "REGRESSED"), (4, "INCONCLUSIVE")])
def test_explain_and_report_a_run_without_a_recipe(
    sqtool_: Sqtool, project: Callable[[int], list[str]], tmp_path: Path, wrong: int, word: str
) -> None:
    project(wrong)
    sqtool_(*GATE)
    (run,) = (path.name for path in (tmp_path / "artifacts/runs").iterdir())
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    said = sqtool_("explain", run)
    assert (said.code, said.err) == (0, "")
    assert f"  {word}: " in said.out
    assert "What to do" in said.out
    assert (f"quiz.exact_match: {wrong} of 400 items got worse" in said.out) == (wrong > 0)
    told = sqtool_("explain", run, "--json").json
    assert told["verdict"] == word
    assert [change["worse"] for change in told["changes"]] == ([wrong] if wrong else [])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before, "nothing is written"
    comment = sqtool_("report", run, "--format", "comment").out
    assert "sqtool gate --baseline models/bf16 --candidate " in comment
    assert sqtool_("report", run, "--format", "junit").out.count("<failure") == (0 if wrong == 0 else 2)


def test_gate_says_what_is_wrong(sqtool_: Sqtool, project: Callable[[int], list[str]]) -> None:
    project(0)
    same = sqtool_("gate", "--baseline", "models/bf16", "--candidate", "models/bf16", "--task", "quiz")
    assert (same.code, "the same folder" in same.err) == (2, True)
    gone = sqtool_("gate", "--baseline", "models/bf16", "--candidate", "models/w4a61", "--task", "quiz")
    assert gone.code == 2
    assert "Did you mean 'w4a16'?" in gone.err
    task = sqtool_(*GATE[:-1], "quizz")
    assert task.code == 2
    assert "quiz" in task.err
    assert sqtool_(*GATE, "--task", "quiz").code == 2
    nothing = sqtool_("gate", "nothing")
    assert nothing.code == 2


def test_eval_of_one_model(sqtool_: Sqtool, project: Callable[[int], list[str]]) -> None:
    asked = project(40)
    said = sqtool_("eval", "--model", "models/w4a16", "--task", "quiz")
    assert said.code == 0, said.err
    row = next(line.split() for line in said.out.splitlines() if line.split()[:1] == ["quiz"])
    assert row == ["quiz", "all", "exact_match", "400", "90.00", "%"]
    assert "records: artifacts/cache/baseline-" in said.out
    assert sqtool_("eval", "--model", "models/w4a16", "--task", "quiz").code == 0
    assert asked == ["w4a16"]


def test_an_evaluated_model_is_the_gates_baseline(sqtool_: Sqtool, project: Callable[[int], list[str]]) -> None:
    asked = project(0)
    assert sqtool_("eval", "--model", "models/bf16", "--task", "quiz").code == 0
    assert sqtool_(*GATE).code == 0
    assert asked == ["bf16", "w4a16"]


def test_json_errors_before_there_is_a_result(sqtool_: Sqtool, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modell: x\n")
    said = sqtool_("quantize", "bad.yaml", "--json")
    assert said.code == said.json["exit_code"] == 2
    assert said.json["problems"][0]["field"] in ("modell", "quantize")
    assert said.json["error"]["type"] == "RecipeError"


def served(*names: str) -> Iterator[str]:
    """The address of a server that lists these models."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": name} for name in names]}).encode()
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def one() -> Iterator[str]:
    yield from served("bf16")


@pytest.fixture
def two() -> Iterator[str]:
    yield from served("w4a16", "w8a8")


def test_gate_on_a_device(sqtool_: Sqtool, project: Callable[[int], list[str]], tmp_path: Path) -> None:
    asked = project(0)
    said = sqtool_(*GATE, "--device", "cuda")
    assert said.code == 4
    assert "engine.device is cuda" in said.err
    assert "is for cpu" in said.err
    assert not asked
    assert sqtool_(*GATE, "--device", "cpu").code == 0
    assert {engine.device for engine in engines} == {"cpu"}
    (run,) = (path.name for path in (tmp_path / "artifacts/runs").glob("gate-*") if (path / "gate").is_dir())
    assert sqtool_(*GATE).code == 0
    assert asked == ["bf16", "w4a16", "w4a16"], "the baseline of the same device is there already"
    again = sqtool_("gate", run, "--device", "cpu", "--margin", "0.3")
    assert again.code == 0, again.err
    state = RunFolder.of(tmp_path, f"{run}-cpu").state()
    assert state["outcome"] == "passed"
    verdict = json.loads((tmp_path / f"artifacts/runs/{run}-cpu/gate/verdict.json").read_text())
    assert verdict["spec"]["metrics"]["quiz.exact_match"]["max_drop"] == 0.3


def test_gate_on_servers_that_run_already(
    sqtool_: Sqtool, project: Callable[[int], list[str]], one: str, two: str, tmp_path: Path
) -> None:
    project(0)
    urls = ("--baseline-url", one, "--candidate-url", two)
    said = sqtool_(*GATE, *urls)
    assert said.code == 2
    assert "w4a16, w8a8" in said.err
    assert "--candidate-name" in said.err
    assert sqtool_(*GATE, *urls, "--candidate-name", "w4a61").code == 4
    said = sqtool_(*GATE, *urls, "--candidate-name", "w4a16")
    assert said.code == 0, said.err
    baseline, candidate = engines
    assert (baseline.model, candidate.model) == ("bf16", "w4a16")
    assert f"{baseline.base_url}/v1" == one
    assert f"{candidate.base_url}/v1" == two
    same = sqtool_(*GATE, "--baseline-url", one, "--candidate-name", "bf16")
    assert same.code == 2
    assert "both be asked of bf16" in same.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--device", "cpu", "--baseline-url", "http://a"), "give --device or --baseline-url"),
        (("--candidate-url", "http://a"), "go with --baseline-url"),
        (("--baseline-url", "http://a"), "where the candidate is served"),
    ],
)
def test_places_that_do_not_go_together(sqtool_: Sqtool, words: tuple[str, ...], told: str) -> None:
    said = sqtool_(*GATE, *words)
    assert said.code == 2
    assert told in said.err


def test_a_difference_beside_the_weights_refuses(
    sqtool_: Sqtool, project: Callable[[int], list[str]], tmp_path: Path
) -> None:
    project(0)
    (tmp_path / "models/w4a16/generation_config.json").write_text('{"temperature": 0.6, "transformers_version": "5"}')
    said = sqtool_(*GATE)
    assert said.code == 1
    assert "generation_config.json:temperature is 0.6, the baseline's missing" in said.err
    assert "allow_differences: [generation_config.json:temperature]" in said.err
    (run,) = (path.name for path in (tmp_path / "artifacts/runs").iterdir())
    again = sqtool_("gate", run)
    assert again.code == 1
    assert "generation_config.json:temperature: 0.6, the baseline's missing" in again.out
    explained = sqtool_("explain", run)
    assert "is not served as the baseline is" in explained.out
    assert "allow_differences" in explained.out
    report = (tmp_path / "artifacts/runs" / run / "report.md").read_text()
    assert "that alone refuses" in report


def test_an_evaluation_to_the_end_leaves_the_recipes_rules_to_the_gate(tmp_path: Path) -> None:
    """`sqtool gate RUN` judges by recipe.json, which is to say what the recipe says."""
    rules = GateSpec()
    fake = make_job(tmp_path)
    job = replace(fake, sections={**fake.sections, "gate": rules}, resolved={"gate": rules.model_dump(mode="json")})
    whole = _to_the_end(job)
    assert whole.sections["gate"].early_stop == "off"
    folder = pipeline.run(whole, stages=STAGES, until="evaluate").folder
    assert GateSpec.model_validate(read_json(folder.recipe_json)["gate"]) == rules


def test_scores_of_declared_slices_are_shown_in_the_order_of_their_numbers() -> None:
    part = {"n": 2, "metrics": {"call_match": 0.5}}
    task = {"n": 4, "metrics": {"call_match": 0.5}, "slices": {"n_tools": {"16": part, "2": part, "other": part}}}
    _, rows = scores([("baseline", {"tasks": {"t": task}})])
    assert [row[1] for row in rows] == ["all", "n_tools=2", "n_tools=16", "n_tools=other"]
    assert rows[1] == ("t", "n_tools=2", "call_match", "2", "50.00 %")
