"""lm-eval's tasks on a model in this process: records, figures, resumption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.engines.hf import HfEngine
from evals.harness.in_process import InProcess
from evals.harness.run import run
from evals.harness.spec import LmEvalSpec
from evals.run import evaluate
from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import InfrastructureError
from sqtool.gate.records import load as gate_load
from sqtool.gate.records import task_files
from sqtool.progress import SILENT
from tests.unit.evals.harness.conftest import ROOT, TASKS, network


def spec(*tasks: str, **more: Any) -> EvaluateSpec:
    own = {"include_path": TASKS, **more}
    return EvaluateSpec(tasks=(), drift=None, lm_eval=LmEvalSpec(tasks=tasks, **own))


@pytest.fixture(scope="module")
def lm(tiny: Path) -> InProcess:
    return InProcess(network(tiny), batch_size=16)


def rows(out: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records" / f"{task}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(lm: InProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    return out, run(spec("lookups", "lookup_prose"), lm, root=ROOT, out=out, key="k")


def test_a_group_becomes_its_leaf_tasks_and_the_gate_reads_them(ran: tuple[Path, dict[str, Any]]) -> None:
    out, results = ran
    assert list(results) == ["lookup_text", "lookup_choice", "lookup_prose"]
    assert sorted(task_files(out)) == sorted(results)
    choice = gate_load(out / "records" / "lookup_choice.jsonl", with_fields=True)
    assert sorted(choice.scores) == ["acc", "acc_norm"]
    assert len(choice.ids) == 24
    assert choice.fields is not None
    assert {"entries", "prompt_tokens"} <= choice.fields[0].keys()
    text = gate_load(out / "records" / "lookup_text.jsonl")
    assert sorted(text.scores) == [
        "empty", "exact_match,strict", "exact_match,word", "gen_len", "repetition", "truncated",
    ]  # fmt: skip
    assert not list((out / "records").glob("*.part"))


def test_the_records_mean_is_lm_evals_own_figure(ran: tuple[Path, dict[str, Any]]) -> None:
    out, results = ran
    for task in ("lookup_text", "lookup_choice"):
        reported = results[task]["lm_eval"]["reported"]
        compared = set(reported) - set(results[task]["lm_eval"]["diagnostics"])
        assert compared
        for metric in compared:
            scores = [row["scores"][metric] for row in rows(out, task)]
            assert sum(scores) / len(scores) == reported[metric] == results[task]["metrics"][metric]


@pytest.mark.slow
def test_the_command_lm_eval_gives_the_same_scores_item_by_item(
    ran: tuple[Path, dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    out, _ = ran
    words = [
        *("--model", "hf", "--model_args", f"pretrained={tiny}", "--device", "cpu", "--batch_size", "16"),
        *("--tasks", "lookups", "--include_path", TASKS, "--log_samples", "--output_path", str(tmp_path)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compared = 0
    for task in ("lookup_text", "lookup_choice"):
        (path,) = tmp_path.rglob(f"samples_{task}_*.jsonl")
        ours = {row["lm_eval"]["doc_id"]: row for row in rows(out, task)}
        for sample in map(json.loads, path.read_text().splitlines()):
            row = ours[sample["doc_id"]]
            for metric in sample["metrics"]:
                name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                if name in row["scores"]:
                    assert row["scores"][name] == sample[metric]
                    compared += 1
            if task == "lookup_text":
                assert row["output"]["text"] == sample["resps"][0][0]
            assert [row["lm_eval"][k] for k in ("doc_hash", "prompt_hash", "target_hash")] == [
                sample[k] for k in ("doc_hash", "prompt_hash", "target_hash")
            ]
    assert compared == 24 * 4


def test_what_is_no_score_of_an_item_is_a_diagnostic(ran: tuple[Path, dict[str, Any]]) -> None:
    _, results = ran
    choice = results["lookup_choice"]["lm_eval"]
    assert choice["diagnostics"] == {"brier_score": "computed from all items together (brier_score)"}
    assert isinstance(choice["reported"]["brier_score"], float)
    prose = results["lookup_prose"]["lm_eval"]
    assert set(prose["diagnostics"]) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert results["lookup_prose"]["metrics"] == {}


def test_versions_and_data_stand_in_the_summary(ran: tuple[Path, dict[str, Any]]) -> None:
    _, results = ran
    told = results["lookup_choice"]["lm_eval"]
    assert told["version"] == "0.4.13"
    assert told["task_version"] == "2.0"
    assert told["num_fewshot"] == 0
    assert len(told["config_sha256"]) == len(told["docs_sha256"]) == 64


def test_a_wrong_answer_says_what_was_expected(ran: tuple[Path, dict[str, Any]]) -> None:
    out, _ = ran
    row = rows(out, "lookup_text")[0]
    assert row["failure"] == "wrong_text"
    assert row["expected"] == {"text": "3939"}
    assert row["detail"].startswith("expected '3939', found strict: ")
    wrong = next(row for row in rows(out, "lookup_choice") if row["failure"])
    assert wrong["failure"] == "wrong_choice"
    assert len(wrong["output"]["loglikelihoods"]) == 4
    assert wrong["output"]["text"] != wrong["expected"]["text"]


def test_examples_are_the_same_for_the_first_items_alone(lm: InProcess, tmp_path: Path) -> None:
    """The control asks the first items only; lm-eval draws the examples of all prompts from one sequence."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    few = spec("lookup_choice", num_fewshot=2)
    for out, limits in ((whole, None), (part, {"lookup_choice": 5})):
        run(few, lm, root=ROOT, out=out, key="k", limits=limits)
    assert len(rows(part, "lookup_choice")) == 5
    hashes = [[row["lm_eval"]["prompt_hash"] for row in rows(out, "lookup_choice")[:5]] for out in (whole, part)]
    assert hashes[0] == hashes[1]
    assert rows(whole, "lookup_choice")[0]["output"]["prompt_tokens"] > 200, "the prompt has examples"


def test_the_limits_of_both_sections_hold(lm: InProcess, tmp_path: Path) -> None:
    small = spec("lookup_choice", limit=7)
    assert run(small, lm, root=ROOT, out=tmp_path / "a", key="k")["lookup_choice"]["n"] == 7
    smaller = small.model_copy(update={"limit": 3})
    assert run(smaller, lm, root=ROOT, out=tmp_path / "b", key="k")["lookup_choice"]["n"] == 3


class Counting(InProcess):
    """Counts what it is asked, and fails at a kind of request."""

    def __init__(self, model: Path, fail: bool = False) -> None:
        super().__init__(network(model), batch_size=16)
        self.asked: list[str] = []
        self.fail = fail

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.asked += [f"generate {request.doc_id}" for request in requests]
        return super().generate_until(requests, disable_tqdm)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [f"choose {request.doc_id}" for request in requests]
        if self.fail:
            raise ZeroDivisionError("as a task's own code may")
        return super().loglikelihood(requests, disable_tqdm)


def test_a_finished_task_is_not_asked_again(tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(InfrastructureError, match=r"lookup_choice failed \(ZeroDivisionError: as a task's own"):
        run(spec("lookups"), Counting(tiny, fail=True), root=ROOT, out=first, key="k")
    assert [path.name for path in (first / "records").glob("lookup_choice*")] == [], "nothing half-written"
    (first / "records" / "lookup_text.jsonl").unlink()  # of an interrupted stage only its parts are kept
    again = Counting(tiny)
    results = run(spec("lookups"), again, root=ROOT, out=second, key="k", resume_from=first)
    assert {word.split()[0] for word in again.asked} == {"choose"}
    assert results["lookup_text"]["resumed"] == 24
    assert results["lookup_choice"]["resumed"] == 0
    assert len(rows(second, "lookup_text")) == 24


@pytest.mark.parametrize("change", ["key", "settings", "torn"])
def test_under_other_conditions_it_is(tiny: Path, tmp_path: Path, change: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(InfrastructureError):
        run(spec("lookups", limit=4), Counting(tiny, fail=True), root=ROOT, out=first, key="k")
    if change == "torn":
        part = first / "records" / "lookup_text.jsonl.part"
        part.write_text(part.read_text()[:-100])
    again = Counting(tiny)
    other = spec("lookups", limit=4, num_fewshot=1) if change == "settings" else spec("lookups", limit=4)
    run(other, again, root=ROOT, out=second, key="other" if change == "key" else "k", resume_from=first)
    assert "generate 0" in again.asked


def test_the_bar_counts_requests_and_lm_evals_own_stay_off_the_screen(
    lm: InProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.evals.harness.bars import Bars

    bars = Bars()
    run(spec("lookups", limit=5), lm, root=ROOT, out=tmp_path, key="k", progress=bars)
    assert bars.seen == {"evaluate: lookup_text": (5, 5), "evaluate: lookup_choice": (20, 20)}
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert "Running loglikelihood requests" in (tmp_path / "lm_eval.log").read_text()


def test_the_engine_in_process_is_asked_with_the_model_that_it_has(tiny: Path, tmp_path: Path) -> None:
    """Through `evaluate`: one copy of the weights, and lm-eval generates with the checkpoint's own end tokens."""
    engine = EngineSpec(kind="hf", device="cpu", dtype="float32", batch_size=16)
    summary = evaluate(spec("lookups", limit=6), engine, model=tiny, root=ROOT, out=tmp_path)
    assert summary["engine"]["engine"] == "transformers"
    alone = tmp_path / "alone"
    known = run(spec("lookups", limit=6), InProcess(network(tiny), batch_size=16), root=ROOT, out=alone, key="k")
    for task in known:
        assert summary["tasks"][task]["metrics"] == known[task]["metrics"]
        assert rows(tmp_path, task) == rows(alone, task)


def test_it_generates_with_the_checkpoints_own_settings(tiny: Path, tmp_path: Path) -> None:
    """Where the engine's own answers must not: without the end tokens, HFLM's batches run on behind them."""
    section = EngineSpec(kind="hf", device="cpu", dtype="float32")
    with HfEngine(section, model=tiny, out=tmp_path, root=ROOT, progress=SILENT) as engine:
        with engine.as_stored() as model:
            assert model.generation_config.eos_token_id == 2
        assert model.generation_config.eos_token_id is None
