"""The adapters against the library functions that they call: contract doubles, bound to the real signatures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from calibrate.spec import CalibrateSpec
from evals.spec import EngineSpec, EvaluateSpec
from quantize.spec import QuantizeSpec
from sqtool.cli.runs import _signed_with
from sqtool.errors import DataError, InconclusiveError, InfrastructureError, RegressedError, UsageError
from sqtool.files import digest_folder, write_json
from sqtool.gate.spec import GateSpec
from sqtool.release.signing import make_keys
from sqtool.release.spec import ReleaseSpec
from sqtool.speculate.spec import SpeculateSpec
from sqtool.stages import baseline, calibrate, control, evaluate, gate, quantize, release, speculate
from sqtool.stages.contract import Inputs
from sqtool.stages.measuring import START_SECONDS, TaskFacts
from sqtool.stages.table import STAGES
from tests.pipeline.fakes import make_job

AWQ = QuantizeSpec.model_validate({"methods": [{"awq": {}}]})
FP8 = QuantizeSpec.model_validate({"methods": [{"fp8": {}}]})
FINISHED = QuantizeSpec(checkpoint="some/where")


class Double:
    """Takes the place of a library function; calls must fit the real function's signature."""

    def __init__(self, real: Callable[..., Any], result: Any, does: Callable[..., None] | None = None) -> None:
        self.signature, self.result, self.does = inspect.signature(real), result, does
        self.arguments: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        self.arguments = bound.arguments
        if self.does is not None:
            self.does(**bound.arguments)
        return self.result


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Double]:
    def make(where: str, result: Any, does: Callable[..., None] | None = None) -> Double:
        module, _, name = where.partition(":")
        fake = Double(getattr(import_module(module), name), result, does)
        monkeypatch.setattr(import_module(module), name, fake)
        return fake

    return make


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    for name in ("model", "draft", "candidate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"vocab_size": 8}')
    folders = {}
    for name in ("calibrate", "quantize", "baseline", "evaluate", "gate", "speculate"):
        folders[name] = tmp_path / "run" / name
        folders[name].mkdir(parents=True)
    return Inputs(
        model=tmp_path / "model",
        draft=tmp_path / "draft",
        seed=7,
        folders=folders,
        root=tmp_path,
        candidate=tmp_path / "candidate",
        sections={
            "engine": EngineSpec(),
            "quantize": AWQ,
            "calibrate": CalibrateSpec(),
            "evaluate": EvaluateSpec(tasks=("t",), drift=None),
            "gate": GateSpec(early_stop="off"),
        },
        recipe={"name": "mine", "text": "name: mine\n", "model": "model", "resolved": {}},
    )


def task_of(tmp_path: Path) -> Path:
    """The evaluation's only task, `t`; the file of its items."""
    folder = tmp_path / "evals" / "tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: exact_match\n")
    (tmp_path / "t.jsonl").touch()
    return tmp_path / "t.jsonl"


def out_of(tmp_path: Path) -> Path:
    out = tmp_path / "out.tmp"
    out.mkdir()
    return out


def test_the_table_names_modules_and_packages_that_exist() -> None:
    seen: set[str] = set()
    for stage in STAGES:
        assert callable(import_module(stage.module).run)
        assert set(stage.needs) <= seen, "a stage needs earlier ones only"
        seen.add(stage.name)
        for package in stage.code:
            import_module(package)


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


def test_speculate(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    fake = double("sqtool.speculate.run:speculate", {"arms": {}})
    evaluate = EvaluateSpec(tasks=("t",))
    inputs = Inputs(
        **{**vars(inputs), "sections": {**inputs.sections, "evaluate": evaluate}, "earlier": tmp_path / "failed"}
    )
    assert speculate.run(SpeculateSpec(), inputs, out_of(tmp_path)).summary == {"arms": {}}
    assert (fake.arguments["baseline"], fake.arguments["candidate"]) == (inputs.model, inputs.candidate)
    assert (fake.arguments["evaluate"], fake.arguments["earlier"]) == (evaluate, tmp_path / "failed")
    assert speculate.skip(SpeculateSpec(enabled=False), inputs)
    alone = Inputs(**{**vars(inputs), "draft": None})
    assert speculate.skip(SpeculateSpec(), alone) == "the recipe has no draft model"
    assert not speculate.skip(SpeculateSpec(method="ngram"), alone)
    assert not speculate.skip(SpeculateSpec(method="draft_model"), alone), "asked for by name, it must be an error"
    assert not speculate.skip(SpeculateSpec(model="some/draft"), alone)


def test_what_speculation_depends_on(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text("{}")
    other = {"target": "baseline", "speculative": {"model": "small"}}
    spec = SpeculateSpec.model_validate({"traffic": "log.jsonl", "arms": {"other": other}})
    assert speculate.data_files(spec, inputs) == [tmp_path / "small/config.json", tmp_path / "log.jsonl"]
    with pytest.raises(DataError, match="no such traffic file"):
        speculate.data_files(SpeculateSpec(traffic="none.jsonl"), inputs)
    # How drift and the controls are measured changes nothing here.
    one, two = EvaluateSpec(tasks=("t",)), EvaluateSpec(tasks=("t",), drift=None, control=None)
    assert speculate.counted(one) == speculate.counted(two)
    assert speculate.counted(one) != speculate.counted(EvaluateSpec(tasks=("u",)))


def test_how_long_speculation_takes(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculate, "engine_preflight", lambda inputs: None)
    facts = TaskFacts(tmp_path, ["a"] * 180, [None] * 180, ["k"] * 180, [{}] * 180, {})
    monkeypatch.setattr(speculate, "item_facts", lambda spec, root: {"t": facts})
    (tmp_path / "log.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    inputs = Inputs(**{**vars(inputs), "sections": {**inputs.sections, "evaluate": EvaluateSpec(tasks=("t",))}})
    spec = SpeculateSpec.model_validate(
        {"traffic": "log.jsonl", "requests": 80, "warmup": 0, "cancellation": None, "request_rate": 8, "repeats": 1}
    )
    estimate = speculate.preflight(spec, inputs)
    # Four starts, five arms at one closed load and one open one, two arms that answer 180 items.
    assert estimate.seconds == pytest.approx(4 * START_SECONDS + 5 * 80 / 12 + 5 * 80 / 8 + 2 * 180 / 18)
    assert (estimate.details["arms"], estimate.details["loads"]) == (5, ["c16", "r8"])


def test_speculation_is_vllms_only(inputs: Inputs) -> None:
    hf = Inputs(**{**vars(inputs), "sections": {"engine": EngineSpec(kind="hf")}})
    assert speculate.skip(SpeculateSpec(), hf) == "speculation is measured with vLLM only, and engine.kind is hf"
    asked_for = SpeculateSpec(enabled=True)
    assert speculate.skip(asked_for, hf) == ""
    with pytest.raises(UsageError, match=r"engine\.kind is hf"):
        speculate.preflight(asked_for, hf)


def test_arms_that_are_served_elsewhere(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(**more: Any) -> SpeculateSpec:
        arms = {name: {"url": f"http://{name}/v1", "model": name} for name in ("baseline", "quantized")}
        arms |= {name: {"url": f"http://{name}/v1", "model": name} for name in ("speculative", "both")}
        return SpeculateSpec.model_validate({"traffic": "log.jsonl", "cancellation": None, "arms": {**arms, **more}})

    facts = TaskFacts(tmp_path, ["a"] * 180, [None] * 180, ["k"] * 180, [{}] * 180, {})
    monkeypatch.setattr(speculate, "item_facts", lambda spec, root: {"t": facts})
    (tmp_path / "log.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    asked: list[list[str]] = []
    monkeypatch.setattr("sqtool.speculate.run.check_servers", lambda arms: asked.append([arm.name for arm in arms]))
    remote = EngineSpec(kind="openai", base_url="http://a", model="m")
    there = Inputs(**{**vars(inputs), "draft": None, "sections": {**inputs.sections, "engine": remote}})
    assert speculate.skip(served(), there) == "", "neither vLLM nor a draft is needed here"
    estimate = speculate.preflight(served(), there)
    assert asked == [["baseline", "quantized", "speculative", "both", "baseline_again"]]
    assert estimate.rule.startswith("0 starts")
    assert estimate.details["elsewhere"] == {name: f"http://{name}" for name in asked[0][:4]}
    servers = {name: {"endpoint": f"http://{name}", "model": name} for name in asked[0][:4]}
    assert speculate.fingerprint(served(), there) == {"servers": servers}
    own = served(mine={"target": "baseline", "speculative": {"model": "small"}})
    assert speculate.skip(own, there).startswith("speculation is measured with vLLM only")
    with pytest.raises(UsageError, match=r"engine\.kind is openai"):
        speculate.preflight(own, there)
    monkeypatch.setattr(speculate, "engine_fingerprint", lambda inputs: {"vllm": "1"})
    assert speculate.fingerprint(own, there) == {"vllm": "1", "servers": servers}
    other = served(mine={"target": "baseline", "speculative": {"model": "x"}, "url": "http://m", "model": "m"})
    assert speculate.data_files(other, there) == [tmp_path / "log.jsonl"], "its drafter is not here"
    moved = served(both={"url": "http://elsewhere", "model": "both"})
    assert speculate.fingerprint(moved, there) != speculate.fingerprint(served(), there)


def test_speculation_elsewhere_is_stale_with_its_server(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(inputs.progress), "note", lambda _, text: said.append(text))
    monkeypatch.setattr("sqtool.speculate.remote.changed", lambda arms: ("another one", ["both"]))
    assert speculate.stale({"arms": {}}, inputs) == "another one"
    monkeypatch.setattr("sqtool.speculate.remote.changed", lambda arms: ("", ["both"]))
    assert speculate.stale({}, inputs) == ""
    assert len(said) == 1
    assert "--force speculate" in said[0]


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


DIFFERS = {"file": "generation_config.json", "field": "temperature", "baseline": "missing", "candidate": "0.6"}


def test_a_difference_refuses_whatever_the_scores_are(inputs: Inputs, tmp_path: Path) -> None:
    for side in ("baseline", "evaluate"):
        records(inputs.folders[side], [1.0] * 400)
    path = inputs.folders["evaluate"] / "result.json"
    value = json.loads(path.read_text())
    value["summary"]["differences"] = [DIFFERS]
    path.write_text(json.dumps(value))
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}, "inconclusive": "allow"})
    out = out_of(tmp_path)
    summary = gate.run(spec, inputs, out).summary
    assert summary["outcome"] == "REGRESSED"
    with pytest.raises(RegressedError, match=r"generation_config\.json:temperature is 0\.6") as caught:
        gate.check(spec, summary)
    assert "allow_differences: [generation_config.json:temperature]" in caught.value.remedy
    allowed = spec.model_copy(update={"allow_differences": ["generation_config.json:temperature"]})
    summary = gate.run(allowed, inputs, out).summary
    assert summary["outcome"] == "PASS"
    gate.check(allowed, summary)
    assert json.loads((out / "verdict.json").read_text())["differences"][0]["allowed"] is True


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        ({"device_class": "cpu"}, {"device_class": "cuda"}, "device_class cpu and cuda"),
        ({"version": "0.32.0"}, {"version": "0.33.0"}, "version 0.32.0 and 0.33.0"),
        ({"engine": "vllm"}, {"engine": "transformers"}, "engine vllm and transformers"),
        ({"dtype": "bfloat16"}, {"dtype": "float16"}, "dtype bfloat16 and float16"),
        ({"flags": ["--kv-cache-dtype", "auto"]}, {"flags": ["--kv-cache-dtype", "fp8"]}, "kv_cache_dtype auto"),
        # A checkpoint that brings its own type of cache is measured with it: that loss is the candidate's.
        (
            {"flags": ["--kv-cache-dtype", "auto"], "kv_cache_dtype": "auto"},
            {"flags": ["--kv-cache-dtype", "auto"], "kv_cache_dtype": "fp8_e4m3"},
            "",
        ),
        ({"device": "one CPU"}, {"device": "another CPU"}, ""),
    ],
)
def test_sides_measured_under_other_conditions_are_not_compared(
    inputs: Inputs, tmp_path: Path, left: dict[str, Any], right: dict[str, Any], told: str
) -> None:
    for side, facts in (("baseline", left), ("evaluate", right)):
        records(inputs.folders[side], [1.0] * 400)
        summary = {"engine": {"engine": "vllm", **facts}, "candidate_digest": "d" * 64}
        write_json(inputs.folders[side] / "result.json", {"summary": summary})
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}})
    if told:
        with pytest.raises(InfrastructureError, match=told):
            gate.run(spec, inputs, out_of(tmp_path))
    else:
        assert gate.run(spec, inputs, out_of(tmp_path)).summary["outcome"] == "PASS"


def test_release(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    (inputs.folders["calibrate"] / "coverage.json").write_text("{}")
    fake = double("sqtool.release.publish:publish", {"path": "artifacts/releases/mine/1"})
    result = release.run(ReleaseSpec(), inputs, out_of(tmp_path))
    given = fake.arguments
    assert (given["spec"].name, given["recipe_text"]) == ("mine", "name: mine\n")
    assert list(given["extras"]) == ["coverage.json"]
    sides = (inputs.folders["baseline"] / "records", inputs.folders["evaluate"] / "records", None)
    assert given["records"] == sides
    assert release.stale(result.summary, inputs) == "the release artifacts/releases/mine/1 is gone"


def test_release_says_what_it_was_made_from(double: Callable[..., Double], inputs: Inputs, tmp_path: Path) -> None:
    for stage, parts in {
        "calibrate": {"content": {"model": "m" * 64}, "data": {"data/pool.jsonl": "p" * 64, "/home/a/own.jsonl": "o"}},
        "baseline": {"content": {"model": "m" * 64}, "data": {"data/test.jsonl": "t" * 64}},
    }.items():
        write_json(inputs.folders[stage] / "result.json", {"parts": parts})
    gate_section = GateSpec().model_dump(mode="json")
    resolved = {"seed": 3, "gate": gate_section, "evaluate": {"generation": {"seed": 5}, "seed": None}}
    inputs = replace(inputs, recipe={**inputs.recipe, "resolved": resolved})
    fake = double("sqtool.release.publish:publish", {"path": "artifacts/releases/mine/1"})
    release.run(ReleaseSpec(), inputs, out_of(tmp_path))
    provenance = fake.arguments["provenance"]
    data = {"data/pool.jsonl": "p" * 64, "own.jsonl": "o", "data/test.jsonl": "t" * 64}
    assert provenance["digests"] == {"model": "m" * 64, "data": data}
    assert provenance["seeds"] == {"recipe": inputs.seed, "evaluate.generation.seed": 5}
    assert provenance["trust_remote_code"] is False
    assert fake.arguments["rules"] == gate_section


def test_release_is_made_again_by_another_key_and_a_bad_key_stops_the_plan(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SQTOOL_SIGNING_KEY", raising=False)
    assert release.fingerprint(ReleaseSpec(), inputs) == {"signer": "none"}
    release.preflight(ReleaseSpec(), inputs)
    key = make_keys(tmp_path / "release.key")[0]
    signed = ReleaseSpec.model_validate({"sign": {"key": str(key)}})
    first = release.fingerprint(signed, inputs)["signer"]
    assert first["method"] == "key"
    monkeypatch.setenv("SQTOOL_SIGNING_KEY", str(key))
    assert release.fingerprint(ReleaseSpec(), inputs) == {"signer": first}
    missing = ReleaseSpec.model_validate({"sign": {"key": "gone.key"}})
    assert "does not exist" in release.fingerprint(missing, inputs)["signer"]
    with pytest.raises(UsageError, match="does not exist"):
        release.preflight(missing, inputs)


def test_the_key_of_the_command_line_goes_before_the_recipes(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    recipe = ReleaseSpec.model_validate({"sign": {"keyless": True}, "version": "v1"})
    found = _signed_with(replace(job, sections={**job.sections, "release": recipe}), tmp_path / "k").sections["release"]
    assert found == ReleaseSpec.model_validate({"sign": {"key": str(tmp_path / "k")}, "version": "v1"})


def records(folder: Path, scores: list[float], digest: str = "d" * 64) -> None:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    lines = [
        {"task": "t", "id": f"i{n}", "kind": "k", "scores": {"exact_match": s}, "output": {"text": f"said {n}"}}
        for n, s in enumerate(scores)
    ]
    (folder / "records" / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"engine": {"engine": "vllm", "start_seconds": len(scores)}, "candidate_digest": digest}
    write_json(folder / "result.json", {"summary": summary})


@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [([1.0] * 400, "PASS"), ([0.0] * 100 + [1.0] * 300, "REGRESSED"), ([0.0] * 4 + [1.0] * 396, "INCONCLUSIVE")],
)
def test_gate_judges_and_stops_what_it_must(inputs: Inputs, tmp_path: Path, candidate: Any, outcome: str) -> None:
    """The real gate, on records made up."""
    records(inputs.folders["baseline"], [1.0] * 400)
    records(inputs.folders["evaluate"], candidate)
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}})
    out = out_of(tmp_path)
    summary = gate.run(spec, inputs, out).summary
    verdict = json.loads((out / "verdict.json").read_text())
    assert summary["outcome"] == verdict["outcome"] == outcome
    assert verdict["bindings"]["candidate_digest"] == "d" * 64
    assert "start_seconds" not in verdict["bindings"]["engine"], "it differs from run to run and measures nothing"
    assert summary["deciding"][0].startswith("t.exact_match: 100.00 % -> ")
    if outcome == "PASS":
        gate.check(spec, summary)
        return
    with pytest.raises(RegressedError if outcome == "REGRESSED" else InconclusiveError) as caught:
        gate.check(spec, summary)
    assert "margin 2.00 points" in str(caught.value)
    allowed = GateSpec.model_validate({"metrics": {"t.exact_match": 0.02}, "inconclusive": "allow"})
    if outcome == "INCONCLUSIVE":
        gate.check(allowed, summary)
    else:
        with pytest.raises(RegressedError):
            gate.check(allowed, summary)


def test_gate_preflight_knows_the_tasks(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: other\nitems: t.jsonl\nscorer: exact_match\n")
    with pytest.raises(UsageError) as caught:
        gate.preflight(GateSpec.model_validate({"metrics": {"othr.exact_match": 0.02}}), inputs)
    assert caught.value.remedy == "did you mean 'other'?"
    spec = GateSpec.model_validate({"metrics": {"other.exact_match": 0.02}})
    with pytest.raises(DataError, match="no such file"):
        gate.preflight(spec, inputs)
    text_items(tmp_path / "t.jsonl", 5)
    assert gate.preflight(spec, inputs).details["gate"]["metrics"][0]["items"] == 5


def text_items(path: Path, n: int) -> None:
    message = {"role": "user", "content": "?"}
    rows = [{"id": f"i{k}", "kind": "k", "messages": [message], "expected": {"text": "x"}} for k in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tool_items(path: Path, called: int, abstained: int) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rows = [
        {
            "id": f"i{k}",
            "messages": [{"role": "user", "content": "?"}],
            "tools": [tool] if k % 2 else [tool, {"type": "function", "function": {"name": "g"}}],
            "expected": {"calls": [{"name": "f"}] if k < called else []},
        }
        for k in range(called + abstained)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_gate_plans_the_items_that_each_metric_applies_to(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: tool_calls\n")
    tool_items(tmp_path / "t.jsonl", 300, 100)
    metrics = {"t.schema_valid": 0.02, "t.call_match": {"relative": 0.02}, "t.later": 0.01}
    spec = GateSpec.model_validate({"metrics": metrics, "slices": ["n_tools"]})

    def planned(limit: int | None) -> dict[str, Any]:
        sections = {**inputs.sections, "evaluate": EvaluateSpec(tasks=("t",), drift=None, limit=limit)}
        estimate = gate.preflight(spec, Inputs(**{**vars(inputs), "sections": sections}))
        assert estimate.details["gate"]["warnings"] == list(estimate.warnings)
        return dict(estimate.details["gate"])

    assert [(m["items"], m["counted"]) for m in planned(None)["metrics"]] == [
        (300, "items"),
        (400, "items"),
        (400, "at_most"),
    ]
    assert [(part["value"], part["items"]) for part in planned(None)["slices"]][:2] == [("1", 150), ("2", 150)]
    few = planned(100)
    assert [m["items"] for m in few["metrics"]] == [75, 100, 100]
    assert "t.schema_valid has 75 items, and a margin of 2 points needs at least 149" in few["warnings"][0]


def test_the_gate_plans_on_the_baselines_records_where_there_are_any(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "evals/tasks"
    folder.mkdir(parents=True)
    (folder / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: exact_match\n")
    text_items(tmp_path / "t.jsonl", 5)
    spec = GateSpec.model_validate({"metrics": {"t.exact_match": {"relative": 0.1}}})
    records(inputs.folders["baseline"], [0.0] * 200 + [1.0] * 200)
    (metric,) = gate.preflight(spec, inputs).details["gate"]["metrics"]
    assert (metric["items"], metric["counted"], metric["margin"]) == (400, "baseline", 0.05)
    assert gate.details(spec, inputs)["gate"]["metrics"] == [metric]
    (inputs.folders["baseline"] / "result.json").unlink()
    (metric,) = gate.preflight(spec, inputs).details["gate"]["metrics"]
    assert (metric["items"], metric["margin"]) == (5, None), "an unfinished baseline counts for nothing"
    records(inputs.folders["baseline"], [0.0] * 400)
    with pytest.raises(DataError, match="relative margin"):
        gate.preflight(spec, inputs)


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
