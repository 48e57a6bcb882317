"""A whole evaluation against the fake server: records, summary, interruption and resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals import client
from evals.engines.base import Question
from evals.engines.openai import look
from evals.records import PartWriter, answer_key, averaged, read_part, remove_parts, said
from evals.run import evaluate, means
from evals.server import VllmServer
from evals.spec import EngineSpec, EvaluateSpec, GenerationSpec
from sqtool.errors import DataError, EngineError
from tests.unit.evals.builders import WEATHER, text_row, tool_row

Writer = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, write_jsonl: Writer) -> Path:
    """A root with two tasks: texts (of six, one expects what the fake does not say) and tool calls."""
    rows = [text_row(i, f"word {i}", kind="a" if i % 2 else "b", fields={"n": i // 3}) for i in range(6)]
    rows[5]["expected"] = {"text": "something else"}
    rows[0]["cluster"] = "c"
    write_jsonl("data/texts.jsonl", rows)
    ask = [{"role": "user", "content": json.dumps({"city": "Rome"})}]
    right = tool_row([{"name": "weather", "arguments": {"city": "Rome"}}], id="t1", messages=ask)
    wrong = tool_row([{"name": "weather", "arguments": {"city": "Oslo"}}], id="t2", messages=ask)
    abstain = tool_row([], id="t3", messages=ask, kind="tool_irrelevance", tools=[WEATHER])
    write_jsonl("data/tools.jsonl", [right, wrong, abstain])
    folder = tmp_path / "evals" / "tasks"
    folder.mkdir(parents=True)
    (folder / "texts.yaml").write_text("task: texts\nitems: data/texts.jsonl\nscorer: exact_match\nslices: [n]\n")
    (folder / "tools.yaml").write_text("task: tools\nitems: data/tools.jsonl\nscorer: tool_calls\n")
    return tmp_path


def _run(project: Path, env: Path, out: str = "out", tasks: tuple[str, ...] = ("texts", "tools"), **more: Any) -> Any:
    settings = {"concurrency": 4, "retries": 0, "as_served": None, **more.pop("spec", {})}
    spec = EvaluateSpec.model_validate({"tasks": tasks, **settings})
    (project / out).mkdir(exist_ok=True)
    engine = more.pop("engine", EngineSpec(env=str(env), startup_timeout=30))
    return evaluate(spec, engine, model=project / "model", root=project, out=project / out, **more)


def _records(project: Path, task: str, out: str = "out") -> list[dict[str, Any]]:
    text = (project / out / "records" / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_records_and_summary(project: Path, fake_model: Path, fake_env: Path) -> None:
    summary = _run(project, fake_env)
    texts = summary["tasks"]["texts"]
    assert texts["n"] == 6
    everywhere = {"gen_len": 2 / 256, "empty": 0.0, "truncated": 0.0, "repetition": 0.0}
    assert texts["metrics"] == {"exact_match": 5 / 6, **everywhere}
    assert texts["by_kind"] == {
        "a": {"n": 3, "metrics": {"exact_match": 2 / 3, **everywhere}},
        "b": {"n": 3, "metrics": {"exact_match": 1.0, **everywhere}},
    }
    assert texts["slices"]["n"]["1"] == {"n": 3, "metrics": {"exact_match": 2 / 3, **everywhere}}
    assert texts["failures"] == {"none": 5, "wrong_text": 1}
    assert texts["tokens"] == {"prompt": 18, "completion": 12}
    tools = summary["tasks"]["tools"]
    assert tools["metrics"] == {"schema_valid": 1.0, "call_match": 1 / 3, "finish_reason_ok": 1.0, **everywhere}
    assert tools["failures"] == {"failed_abstention": 1, "none": 1, "wrong_arguments": 1}
    assert tools["arguments"] == {"city": {"value": 1}}
    assert summary["engine"]["engine"] == "vllm"
    assert summary == json.loads((project / "out" / "evaluation.json").read_text())

    rows = _records(project, "texts")
    assert [row["id"] for row in rows] == [f"i{i}" for i in range(6)], "in the order of the items"
    assert rows[0] == {
        "task": "texts",
        "id": "i0",
        "kind": "b",
        "cluster": "c",
        "fields": {"n": 0, "n_tools": 0},
        "scores": {"exact_match": 1.0, **everywhere},
        "failure": None,
        "detail": "",
        "output": {
            "text": "word 0",
            "tool_calls": [],
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "completion_tokens": 2,
        },
        "expected": {"text": "word 0"},
    }
    assert _records(project, "tools")[1]["faults"] == [{"tool": "weather", "argument": "city", "wrong": "value"}]
    abstained = _records(project, "tools")[2]
    assert "schema_valid" not in abstained["scores"]
    assert abstained["output"]["tool_calls"] == [{"name": "weather", "arguments": '{"city": "Rome"}'}]
    assert sorted(p.name for p in (project / "out").rglob("*.part")) == ["texts.jsonl.part", "tools.jsonl.part"]
    remove_parts(project / "out")
    assert not list((project / "out").rglob("*.part"))


def test_bad_items_are_found_before_the_engine_starts(project: Path, fake_model: Path, write_jsonl: Writer) -> None:
    write_jsonl("data/tools.jsonl", [tool_row([]), tool_row([])])
    with pytest.raises(DataError, match=r"tools\.jsonl:2: id"):
        _run(project, project / "no-such-env")


def test_a_dead_engine_scores_nothing_and_the_next_run_goes_on(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("FAKE_VLLM", "die_after:4")
    with pytest.raises(EngineError):
        _run(project, fake_env, tasks=("texts",), spec={"concurrency": 1})
    folder = project / "out" / "records"
    assert not (folder / "texts.jsonl").exists()
    part = folder / "texts.jsonl.part"
    assert len(part.read_text().splitlines()) == 4
    with part.open("a") as handle:
        handle.write('{"key": "torn')  # as a kill in mid-write leaves it

    monkeypatch.setenv("FAKE_VLLM", "ok")
    summary = _run(project, fake_env, tasks=("texts",), resume_from=project / "out")
    assert summary["tasks"]["texts"]["resumed"] == 4
    assert [row["id"] for row in _records(project, "texts")] == [f"i{i}" for i in range(6)]
    again = _run(project, fake_env, "out2", tasks=("texts",))
    assert again["tasks"]["texts"]["resumed"] == 0
    assert _records(project, "texts") == _records(project, "texts", "out2")


@pytest.mark.parametrize("change", ["nothing", "version", "variable", "template"])
def test_answers_of_another_engine_are_not_reused(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Else a candidate's answers of the engine before an upgrade would be held to a baseline of the one after it."""
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.0)
    monkeypatch.delenv("VLLM_USE_DEEP_GEMM", raising=False)
    template = project / "t.jinja"
    template.write_text("{{ messages }}")
    words = ("--chat-template", str(template))
    engine = EngineSpec(env=str(fake_env), startup_timeout=30, extra_args=words)
    monkeypatch.setenv("FAKE_VLLM", "die_after:4")
    with pytest.raises(EngineError):
        _run(project, fake_env, tasks=("texts",), spec={"concurrency": 1}, engine=engine)
    monkeypatch.setenv("FAKE_VLLM", "ok")
    if change == "version":
        site = fake_env / "lib" / "python3.11" / "site-packages"
        (site / "vllm-9.9.9+cpu.dist-info").rename(site / "vllm-9.9.10+cpu.dist-info")
    elif change == "variable":
        monkeypatch.setenv("VLLM_USE_DEEP_GEMM", "0")
    elif change == "template":
        template.write_text("{{ messages }}!")
    summary = _run(project, fake_env, tasks=("texts",), engine=engine, resume_from=project / "out")
    assert summary["tasks"]["texts"]["resumed"] == (4 if change == "nothing" else 0)


@pytest.mark.parametrize("version", ["9.9.9", "9.9.10"])
def test_answers_of_a_server_that_says_something_else_are_not_reused(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    def killed(*_: object) -> None:
        raise EngineError("as good as killed")

    with VllmServer(fake_model, EngineSpec(startup_timeout=30), log=project / "log", python_env=fake_env) as server:
        monkeypatch.setenv("SQTOOL_FAKE_KEY", server.api_key)
        engine = EngineSpec(kind="openai", base_url=server.base_url, model="model", api_key_env="SQTOOL_FAKE_KEY")
        with monkeypatch.context() as patch:
            patch.setattr("evals.run.write_records", killed)
            with pytest.raises(EngineError, match="as good as"):
                _run(project, fake_env, tasks=("texts",), engine=engine)
        monkeypatch.setattr("evals.engines.openai.look", lambda spec: {**look(spec), "version": version})
        summary = _run(project, fake_env, tasks=("texts",), engine=engine, resume_from=project / "out")
    assert summary["tasks"]["texts"]["resumed"] == (6 if version == "9.9.9" else 0)


def test_what_fails_behind_the_answers_costs_none_of_them(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(project, fake_env, spec={"as_served": {"items": 3}})  # and then, say, drift fails
    bodies = project / "bodies.jsonl"
    monkeypatch.setenv("FAKE_VLLM_BODIES", str(bodies))
    for path in (project / "out").rglob("*.jsonl"):
        path.unlink()  # as the pipeline does it
    summary = _run(project, fake_env, "out2", spec={"as_served": {"items": 3}}, resume_from=project / "out")
    assert [summary["tasks"][name]["resumed"] for name in ("texts", "tools")] == [6, 3]
    assert not bodies.exists()


def test_a_second_failure_costs_no_answers_either(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("FAKE_VLLM", "die_after:8")
    with pytest.raises(EngineError):
        _run(project, fake_env, spec={"concurrency": 1})  # in the second task
    with pytest.raises(EngineError):  # before any task
        _run(project, project / "no-such-env", "out2", resume_from=project / "out")
    monkeypatch.setenv("FAKE_VLLM", "ok")
    summary = _run(project, fake_env, "out3", resume_from=project / "out2")
    assert [summary["tasks"][name]["resumed"] for name in ("texts", "tools")] == [6, 2]


def test_ends_of_lines_inside_of_an_answer_end_no_line(tmp_path: Path) -> None:
    from evals.items import Item
    from evals.scorers import Answer

    item, answer = Item.model_validate(text_row(1, "a")), Answer("a\u2028b\u2029c\x85d\x0be")
    with PartWriter(tmp_path / "p.part", "key") as writer:
        writer.append(Question(item), answer)
    assert read_part(tmp_path / "p.part", "key", [item]) == {("i1", 0): answer}


def test_answers_under_other_conditions_are_not_reused(fake_model: Path, tmp_path: Path) -> None:
    engine, generation = EngineSpec(), GenerationSpec()
    key = answer_key(fake_model, engine, generation, 0)
    assert key == answer_key(fake_model, EngineSpec(startup_timeout=1), generation, 0)
    others = {
        answer_key(fake_model, EngineSpec(kv_cache_dtype="fp8"), generation, 0),
        answer_key(fake_model, engine, GenerationSpec(max_tokens=1), 0),
        answer_key(fake_model, engine, generation, 1),
    }
    (fake_model / "model.safetensors").write_bytes(b"x")
    others.add(answer_key(fake_model, engine, generation, 0))
    remote = {"kind": "openai", "base_url": "http://a", "model": "m"}
    for change in ({}, {"base_url": "http://b"}, {"model": "n"}):
        others.add(answer_key(fake_model, EngineSpec.model_validate({**remote, **change}), generation, 0))
    others.add(answer_key(fake_model, EngineSpec(kind="hf"), generation, 0))
    assert len(others - {key}) == 8
    hot = GenerationSpec(temperature=1)
    more = GenerationSpec(temperature=1, samples=3)
    assert answer_key(fake_model, engine, hot, 0) == answer_key(fake_model, engine, more, 0), "seeds are per sample"

    from evals.items import Item
    from evals.scorers import Answer, ToolCall

    item = Item.model_validate(text_row(1, "a"))
    edited = Item.model_validate(text_row(1, "b"))
    answer = Answer("x", (ToolCall("f", "{}"),), "stop", 1, 2)
    path = tmp_path / "p.part"
    with PartWriter(path, key) as writer:
        writer.append(Question(item, 1), answer)
    assert read_part(path, key, [item]) == {("i1", 1): answer}
    assert read_part(path, "other", [item]) == {}
    assert read_part(path, key, [edited]) == {}
    # Still JSON, and not what was answered.
    path.write_text(path.read_text().replace('"text":"x"', '"text":"y"'))
    assert read_part(path, key, [item]) == {}


def test_a_metric_is_averaged_over_the_items_that_have_it() -> None:
    rows = [{"scores": {"a": 1.0, "b": 0.0}}, {"scores": {"a": 0.0}}, {"scores": {}}]
    assert means(rows) == {"n": 3, "metrics": {"a": 0.5, "b": 0.0}}


def test_samples_are_seeded_averaged_and_kept(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = project / "bodies.jsonl"
    monkeypatch.setenv("FAKE_VLLM_BODIES", str(bodies))
    spec = {"generation": {"temperature": 0.8, "samples": 3}}
    summary = _run(project, fake_env, tasks=("texts",), spec=spec, seed=5)
    seeds: dict[str, list[int]] = {}
    for body in map(json.loads, bodies.read_text().splitlines()):
        seeds.setdefault(body["messages"][-1]["content"], []).append(body["seed"])
    assert set(map(tuple, map(sorted, seeds.values()))) == {(5, 6, 7)}
    assert len(seeds) == 6
    row = _records(project, "texts")[0]
    assert row["outputs"] == [row["output"]] * 3
    assert summary["tasks"]["texts"]["n"] == 6
    assert summary["tasks"]["texts"]["tokens"] == {"prompt": 3 * 18, "completion": 3 * 12}


def test_an_interrupted_item_goes_on_with_its_missing_samples(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("FAKE_VLLM", "die_after:4")
    spec = {"generation": {"temperature": 0.8, "samples": 3}, "concurrency": 1}
    with pytest.raises(EngineError):
        _run(project, fake_env, tasks=("texts",), spec=spec)
    bodies = project / "bodies.jsonl"
    monkeypatch.setenv("FAKE_VLLM", "ok")
    monkeypatch.setenv("FAKE_VLLM_BODIES", str(bodies))
    summary = _run(project, fake_env, tasks=("texts",), spec=spec, resume_from=project / "out")
    assert len(bodies.read_text().splitlines()) == 3 * 6 - 4
    assert summary["tasks"]["texts"]["resumed"] == 1, "items that were complete"


def test_averaged_records() -> None:
    def row(score: float, failure: str | None) -> dict[str, Any]:
        return {
            "id": "a",
            "scores": {"m": score},
            "failure": failure,
            "detail": failure or "",
            "output": {"text": score},
        }

    assert averaged([row(1, None)]) == row(1, None)
    mixed = averaged([row(1, None), row(0, "late"), row(0, "wrong"), row(0.5, "wrong")])
    assert mixed["scores"] == {"m": 0.375}
    assert (mixed["failure"], mixed["detail"]) == ("wrong", "3 of 4 answers are wrong; one of them: wrong")
    assert [output["text"] for output in mixed["outputs"]] == [1, 0, 0, 0.5]
    assert averaged([row(1, None)] * 2)["failure"] is None


def test_what_was_said_covers_every_sample_and_what_probabilities_decided() -> None:
    first = {"output": {"text": "a", "completion_tokens": 3}}
    assert said(first) == said({"output": {"text": "a", "completion_tokens": 9}})
    assert said({**first, "outputs": [first["output"], {"text": "b"}]}) != said(
        {**first, "outputs": [first["output"], {"text": "c"}]}
    )
    decided = {"output": {"text": "", "loglikelihoods": [1]}, "scores": {"acc": 1.0}}
    assert said(decided) == said({**decided, "output": {"text": "", "loglikelihoods": [1.0000001]}})
    assert said(decided) != said({**decided, "scores": {"acc": 0.0}})
    assert said({"output": "text of another program"}) == ["text of another program"]


def test_some_items_are_asked_as_served(
    project: Path, fake_model: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = project / "bodies.jsonl"
    monkeypatch.setenv("FAKE_VLLM_BODIES", str(bodies))
    summary = _run(project, fake_env, spec={"as_served": {"items": 4}})
    sent = [json.loads(line) for line in bodies.read_text().splitlines()]
    served = [body for body in sent if "temperature" not in body]
    assert {name: task["n"] for name, task in summary["as_served"].items()} == {"texts": 3, "tools": 2}
    assert (len(served), len(sent)) == (5, 9 + 5)
    assert summary["as_served"]["texts"]["metrics"]["exact_match"] == 1.0
    assert len(_records(project, "texts", "out/as_served")) == 3
    assert len(_records(project, "texts")) == 6, "and nothing of it is gated"
    bodies.unlink()
    everything = {"as_served": {"items": 4}, "generation": "as_served"}
    assert _run(project, fake_env, "out2", spec=everything)["as_served"] == {}
    assert len(bodies.read_text().splitlines()) == 9, "nobody asks for the same twice"
