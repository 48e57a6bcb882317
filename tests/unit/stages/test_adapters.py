"""The adapters against the library functions that they call: contract doubles, bound to the real signatures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from calibrate.spec import CalibrateSpec
from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import DataError, UsageError
from sqtool.files import digest_folder
from sqtool.gate.spec import GateSpec
from sqtool.stages import baseline, calibrate, control, evaluate, quantize
from sqtool.stages.contract import Inputs
from sqtool.stages.table import STAGES
from tests.unit.stages.doubles import AWQ, FINISHED, FP8, Double, double, inputs, out_of, records, task_of

__all__ = ["double", "inputs"]


def test_the_table_names_modules_and_packages_that_exist() -> None:
    seen: set[str] = set()
    for stage in STAGES:
        assert callable(import_module(stage.module).run)
        assert set(stage.needs) <= seen, "a stage needs earlier ones only"
        seen.add(stage.name)
        for package in stage.code:
            import_module(package)
        for distribution in stage.tools:
            metadata.version(distribution)


def test_verdicts_depend_on_the_libraries_that_compute_them() -> None:
    assert {stage.name: stage.tools for stage in STAGES if "sqtool.gate" in stage.code} == {
        "gate": ("numpy", "scipy"),
        "approve": ("numpy", "scipy"),
    }


def test_calibrate(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def build(_spec: CalibrateSpec, **arguments: Any) -> dict[str, Any]:
        items = {name: path.read_text() for name, path in arguments["evals"].items()}
        seen.update(arguments, items=items)
        return {"samples": 3}

    monkeypatch.setattr("calibrate.build.build", build)
    item = {"id": "a", "messages": [{"role": "user", "content": "?"}], "expected": {"text": "yes"}}
    task_of(tmp_path).write_text(json.dumps(item) + "\n")
    assert calibrate.run(CalibrateSpec(), inputs, out_of(tmp_path)).summary == {"samples": 3}
    assert (seen["seed"], seen["root"]) == (7, tmp_path)
    assert {name: json.loads(text) for name, text in seen["items"].items()} == {"t": item}
    blind = CalibrateSpec.model_validate({"contamination": "off", "coverage": {"evals": False}})
    calibrate.run(blind, inputs, tmp_path / "out.tmp")
    assert seen["items"] == {}


def test_calibrate_is_skipped_where_nobody_looks_at_data(inputs: Inputs) -> None:
    assert calibrate.skip(CalibrateSpec(), inputs) == ""
    for spec, words in ((FP8, "no method"), (FINISHED, "finished checkpoint")):
        other = Inputs(**{**vars(inputs), "sections": {"quantize": spec}})
        assert words in calibrate.skip(CalibrateSpec(), other)
    assert quantize.skip(FINISHED, inputs)
    assert not quantize.skip(AWQ, inputs)


def test_calibration_sources_are_data_and_must_exist(inputs: Inputs, tmp_path: Path) -> None:
    items = task_of(tmp_path)
    spec = CalibrateSpec.model_validate({"sources": [{"path": "pool.jsonl"}]})
    with pytest.raises(DataError, match="no such calibration file"):
        calibrate.data_files(spec, inputs)
    (tmp_path / "pool.jsonl").write_text("x" * 399 + "\n")
    assert calibrate.data_files(spec, inputs) == [tmp_path / "pool.jsonl", tmp_path / "evals/tasks/t.yaml", items]
    assert calibrate.expected_tokens(spec, inputs) == spec.num_calibration_samples * 100
    matched = spec.model_copy(update={"match": "traffic.jsonl", "target_tokens": 5000})
    with pytest.raises(DataError, match=r"calibrate\.match: no such file"):
        calibrate.data_files(matched, inputs)
    (tmp_path / "traffic.jsonl").touch()
    names = ("pool.jsonl", "traffic.jsonl", "evals/tasks/t.yaml", "t.jsonl")
    assert calibrate.data_files(matched, inputs) == [tmp_path / name for name in names]
    assert calibrate.expected_tokens(matched, inputs) == 5000


def test_quantize(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    fake = double("quantize.run:quantize", {"bytes_after": 1})
    assert quantize.run(AWQ, inputs, out_of(tmp_path)).summary == {"bytes_after": 1}
    assert fake.arguments["calibration"] == inputs.folders["calibrate"]
    skipped = Inputs(**{**vars(inputs), "folders": {}})
    quantize.run(FP8, skipped, tmp_path / "out.tmp")
    assert fake.arguments["calibration"] is None


def test_baseline_and_evaluate(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    asked = double("evals.run:evaluate", {"tasks": {}})
    states = double("evals.drift:baseline_states", {"texts": 1})
    drift = double("evals.drift:drift", {"texts": 1})
    double("evals.drift:kept_texts", [])
    rendered = double("evals.drift:texts_of", [])
    changed = double("evals.flips:compare_records", {"t": {}})
    (tmp_path / "evals/tasks").mkdir(parents=True)
    (tmp_path / "evals/tasks/t.yaml").write_text(
        "task: drawn\nitems: t.jsonl\nscorer: exact_match\ngeneration: {temperature: 0.5}\n"
    )
    spec = EvaluateSpec(tasks=("t",))
    out = out_of(tmp_path)
    assert baseline.run(spec, inputs, out).summary == {"tasks": {}, "states": {"texts": 1}}
    assert asked.arguments["model"] == inputs.model
    assert states.arguments["out"] == out / "states"
    assert rendered.arguments["answers"] == out / "records"
    assert callable(asked.arguments["probe"])
    summary = evaluate.run(spec, inputs, out).summary
    assert asked.arguments["model"] == inputs.candidate
    assert drift.arguments["states"] == inputs.folders["baseline"] / "states"
    assert summary["candidate_digest"] == digest_folder(tmp_path / "candidate")
    assert drift.arguments["engine"] == {"baseline": inputs.folders["baseline"], "candidate": out}
    assert (summary["changes"], changed.arguments["sampled"]) == ({"t": {}}, {"drawn"})
    assert "drift" not in evaluate.run(spec.model_copy(update={"drift": None}), inputs, out).summary
    assert asked.arguments["probe"] is None


def test_evaluate_is_watched_and_says_by_which_rules_it_ended(
    double: Callable[..., Double], inputs: Inputs, tmp_path: Path
) -> None:
    records(inputs.folders["baseline"], [1.0, 1.0])
    ended = {"tasks": {"t": {"n": 1, "of": 2}}, "stopped": {"task": "t"}}
    asked = double("evals.run:evaluate", ended)
    gate = GateSpec.for_metrics(["t.exact_match"])
    watched = Inputs(**{**vars(inputs), "sections": {**inputs.sections, "gate": gate}})
    summary = evaluate.run(EvaluateSpec(drift=None), watched, out_of(tmp_path)).summary
    assert asked.arguments["watch"].spec == gate
    assert evaluate.stale(summary, watched) == ""
    wider = Inputs(**{**vars(inputs), "sections": {"gate": GateSpec.for_metrics(["t.exact_match"], max_drop=0.5)}})
    assert evaluate.stale(summary, wider) == "it ended early by other rules of the gate"
    assert evaluate.stale({"tasks": {"t": {"n": 2, "of": 2}}}, wider) == ""  # a complete one serves any rules


def test_control(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    asked = double("evals.control:control", {"different_answers": 0})
    assert control.run(EvaluateSpec(), inputs, out_of(tmp_path)).summary == {"different_answers": 0}
    assert (asked.arguments["model"], asked.arguments["baseline"]) == (inputs.model, inputs.folders["baseline"])
    assert control.skip(EvaluateSpec(control=None), inputs)
    assert not control.skip(EvaluateSpec(), inputs)


def test_each_side_is_asked_in_its_own_place(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    remote = EngineSpec(kind="openai", base_url="http://a", model="m", candidate_base_url="http://b")
    there = Inputs(**{**vars(inputs), "sections": {**inputs.sections, "engine": remote}})
    asked = double("evals.run:evaluate", {"tasks": {}})
    out = out_of(tmp_path)
    baseline.run(EvaluateSpec(drift=None), there, out)
    assert asked.arguments["engine"] == EngineSpec(kind="openai", base_url="http://a", model="m")
    evaluate.run(EvaluateSpec(drift=None), there, out)
    assert asked.arguments["engine"] == EngineSpec(kind="openai", base_url="http://b", model="m")
    moved = EngineSpec.model_validate({**remote.model_dump(), "candidate_base_url": "http://c"})
    assert baseline.counted(remote) == baseline.counted(moved), "the baseline is evaluated once for all candidates"
    assert evaluate.counted(remote) != evaluate.counted(moved)
    assert control.counted(EngineSpec(device="cpu")) == EngineSpec(), "the fingerprint names the device"
    assert baseline.fingerprint(EvaluateSpec(), there) == {"endpoint": "http://a", "model": "m"}
    same = EngineSpec(kind="openai", base_url="http://a", model="m")
    both = Inputs(**{**vars(inputs), "sections": {**inputs.sections, "engine": same}})
    with pytest.raises(UsageError, match="would both be asked of m at http://a"):
        evaluate.preflight(EvaluateSpec(), both)


def test_the_kind_of_engine_is_part_of_what_counts() -> None:
    kinds = (EngineSpec(), EngineSpec(kind="hf"), EngineSpec(kind="openai", base_url="http://a", model="m"))
    texts = {json.dumps(baseline.counted(kind).model_dump(mode="json"), sort_keys=True) for kind in kinds}
    assert len(texts) == 3


def test_evaluate_says_what_differs_beside_the_weights(
    double: Callable[..., Double], inputs: Inputs, tmp_path: Path
) -> None:
    double("evals.run:evaluate", {"tasks": {}})
    assert inputs.candidate is not None
    (inputs.candidate / "generation_config.json").write_text('{"temperature": 0.6}')
    summary = evaluate.run(EvaluateSpec(drift=None), inputs, out_of(tmp_path)).summary
    (found,) = summary["differences"]
    assert (found["file"], found["field"]) == ("generation_config.json", "temperature")


def test_evaluation_data_are_the_task_files_and_their_items(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: data/t.jsonl\nscorer: exact_match\n")
    spec = EvaluateSpec(tasks=("t",))
    with pytest.raises(DataError, match="no such file"):
        baseline.data_files(spec, inputs)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/t.jsonl").write_text("")
    assert baseline.data_files(spec, inputs) == [folder / "t.yaml", tmp_path / "data/t.jsonl"]
    named = EvaluateSpec.model_validate({"tasks": ["t"], "drift": {"prose": "gone.jsonl"}})
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        baseline.data_files(named, inputs)


def test_fingerprint_never_raises(inputs: Inputs, tmp_path: Path) -> None:
    nowhere = Inputs(**{**vars(inputs), "sections": {"engine": EngineSpec(env=str(tmp_path / "none"))}})
    assert baseline.fingerprint(EvaluateSpec(), nowhere) == {"vllm": "absent"}


@pytest.mark.parametrize("kind", [{"kind": "hf"}, {"kind": "openai", "base_url": "http://a", "model": "m"}])
def test_a_vllm_that_lies_here_says_nothing_about_another_engine(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, str]
) -> None:
    from evals.engine_env import VllmEnv
    from sqtool.stages import runtime

    here = VllmEnv(tmp_path, tmp_path / "vllm", "cpu", "0.32.0+cpu")
    monkeypatch.setattr(runtime, "locate", lambda _: here)
    for engine, known in ((EngineSpec(), True), (EngineSpec.model_validate(kind), False)):
        at = Inputs(**{**vars(inputs), "sections": {"engine": engine}})
        assert (runtime.runtime_of(at) is not None) == known


def test_answers_as_served_are_sampled(inputs: Inputs, tmp_path: Path) -> None:
    task_of(tmp_path)
    spec = EvaluateSpec.model_validate({"tasks": ["t"], "generation": "as_served"})
    assert evaluate._sampled(spec, tmp_path) == {"t"}
    assert evaluate._sampled(EvaluateSpec(tasks=("t",)), tmp_path) == set()
