"""All arms against the double: same traffic, every file written, faults named, interrupted runs resumed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import DataError, EngineError, UsageError
from sqtool.files import read_json, sha256_file
from sqtool.progress import SILENT
from sqtool.runfolder import discard
from sqtool.speculate.run import preflight, speculate
from sqtool.speculate.spec import RulesSpec, SpeculateSpec

SPEC = SpeculateSpec(traffic="traffic.jsonl", requests=32, max_concurrency=(4,), warmup=3, repeats=1, cancellation=None)
ARMS = ["baseline", "quantized", "speculative", "both", "baseline_again"]


def run(root: Path, spec: SpeculateSpec = SPEC, *, candidate: str = "quantized", **more: Any) -> Any:
    out = root / "stage.tmp"
    out.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {"draft": root / "draft", **more}
    return speculate(
        spec,
        EngineSpec(kv_cache_memory_bytes=1 << 20),
        baseline=root / "target",
        candidate=root / candidate,
        root=root,
        out=out,
        progress=SILENT,
        seed=0,
        **arguments,
    )


def changed(**keys: Any) -> SpeculateSpec:
    return SPEC.model_copy(update=keys)


def rows(root: Path, arm: str, name: str = "requests.jsonl") -> list[dict[str, Any]]:
    path = root / "stage.tmp" / "arms" / arm / name
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("interleave", ["auto", "never"])
def test_every_arm_has_every_file(fake: Any, project: Path, interleave: str) -> None:
    report = run(project, changed(interleave=interleave))
    out = project / "stage.tmp"
    assert report == read_json(out / "speculate.json")
    plan = read_json(out / "plan.json")
    assert plan["arms"] == ARMS
    assert plan["interleaved"] is (interleave == "auto")
    assert not list(out.rglob("*.part"))
    for name in ARMS:
        answers = rows(project, name)
        assert len(answers) == 32
        assert {(a["load"], a["round"], a["error"]) for a in answers} == {("c4", 0, "")}
        about = read_json(out / "arms" / name / "arm.json")
        assert about["complete"] is True
        assert (about["speculative_config"] is not None) == (name in ("speculative", "both"))
        assert about["memory"]["kv_cache_tokens"] == 1600
        assert about["memory"]["kv_cache_bytes"] == 4096
        assert "rss_peak_bytes" in about["memory"]["missing"]  # the double has no process
        [block] = rows(project, name, "blocks.jsonl")
        assert block["load"] == "c4"
        assert (block["counters"]["speculation"] is not None) == (name in ("speculative", "both"))
    assert report["traffic"]["sha256"] == sha256_file(out / "traffic.jsonl")
    # Interleaved, the control is asked of the baseline's own server.
    assert len(fake.started) == (4 if interleave == "auto" else 5)
    again = read_json(out / "arms/baseline_again/arm.json")
    assert again.get("shares_server_of") == ("baseline" if interleave == "auto" else None)


def test_every_arm_gets_the_same_requests(fake: Any, project: Path) -> None:
    run(project, changed(max_concurrency=(1,), interleave="never"))
    sent = [[body["messages"] for body in server.bodies] for server in fake.started]
    assert len(sent) == 5
    assert all(one == sent[0] for one in sent)
    assert len(sent[0]) == 3 + 32  # warm-up first
    salts = [Counter(body["cache_salt"] for body in server.bodies) for server in fake.started]
    assert all(len(one) == 2 for one in salts)  # a pass shares its prompts' prefixes with itself alone
    flags = [server.extra_args for server in fake.started]
    assert flags[0] == flags[1] == flags[4] == []
    assert flags[2] == flags[3]
    assert json.loads(flags[2][1]) == {
        "method": "draft_model",
        "num_speculative_tokens": 4,
        "model": str((project / "draft").resolve()),
    }
    assert flags[2][2:] == ["--per-request-spec-decode-metrics", "summary"]


def test_interleaved_arms_take_turns(fake: Any, project: Path) -> None:
    run(project, changed(repeats=3))
    turns = read_json(project / "stage.tmp/plan.json")["schedule"]
    slots = [[turn["arm"] for turn in turns[at : at + 5]] for at in range(0, len(turns), 5)]
    assert len(slots) == 3
    assert all(sorted(slot) == sorted(ARMS) for slot in slots)
    assert len({tuple(slot) for slot in slots}) > 1  # the order is drawn anew
    assert len(rows(project, "both")) == 3 * 32


def test_loads_and_more_arms(fake: Any, project: Path) -> None:
    spec = SpeculateSpec.model_validate(
        {
            "traffic": "traffic.jsonl",
            "requests": 8,
            "warmup": 1,
            "repeats": 1,
            "max_concurrency": [1, 4],
            "request_rate": 400,
            "cancellation": None,
            "control": False,
            "sweep": {"num_speculative_tokens": [2, 4]},
            "arms": {
                "ngram": {"target": "quantized", "speculative": {"method": "ngram"}},
                "fp8_kv": {"target": "baseline", "engine": {"kv_cache_dtype": "fp8", "extra_args": ["--x"]}},
            },
        }
    )
    run(project, spec)
    plan = read_json(project / "stage.tmp/plan.json")
    assert plan["arms"] == ["baseline", "quantized", "speculative", "both", "both_k2", "ngram", "fp8_kv"]
    assert [load["name"] for load in plan["loads"]] == ["c1", "c4", "r400"]
    [opened] = [load for load in plan["loads"] if load["name"] == "r400"]
    assert len(opened["arrivals_s"]) == 8
    for arm in plan["arms"]:
        assert Counter(row["load"] for row in rows(project, arm)) == {"c1": 8, "c4": 8, "r400": 8}
    by_arm = {server.log.parent.name: server for server in fake.started}
    assert by_arm["fp8_kv"].spec.kv_cache_dtype == "fp8"
    assert by_arm["fp8_kv"].spec.extra_args == ("--x",)
    assert json.loads(by_arm["ngram"].extra_args[1]) == {"method": "ngram", "num_speculative_tokens": 4}
    assert json.loads(by_arm["both_k2"].extra_args[1])["num_speculative_tokens"] == 2


def test_answers_are_scored(fake: Any, project: Path) -> None:
    lines = [json.loads(line) for line in (project / "traffic.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        if line["kind"] == "lookup":  # the double repeats the question, so half of them are right
            line["expected"] = {"text": line["messages"][0]["content"] if number % 2 else "something else"}
    (project / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(project)
    answers = rows(project, "both")
    found = Counter((row["kind"], row["accepted"], row["score"]) for row in answers)
    assert {key for key in found if key[0] == "lookup"} == {("lookup", True, 1.0), ("lookup", False, 0.0)}
    assert {key[1:] for key in found if key[0] != "lookup"} == {(None, None)}
    frozen = [json.loads(line) for line in (project / "stage.tmp/traffic.jsonl").read_text().splitlines()]
    assert {(line["kind"], line["scorer"]) for line in frozen} >= {("lookup", "exact_match"), ("prose", None)}


def test_older_servers_are_counted_by_blocks(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqtool.speculate.run.reports_per_request", lambda env: False)
    run(project)
    assert read_json(project / "stage.tmp/plan.json")["single_kind_blocks"] is True
    blocks = rows(project, "both", "blocks.jsonl")
    assert sorted(block["kind"] for block in blocks) == ["lookup", "prose", "tool_simple"]
    by_arm = {server.log.parent.name: server for server in fake.started}
    assert by_arm["both"].extra_args[0::2] == ["--speculative-config"]


def test_sampled_answers_have_their_own_seeds(fake: Any, project: Path) -> None:
    spec = SpeculateSpec.model_validate(
        {**SPEC.model_dump(), "sampling": {"requests": 5, "samples": 3, "temperature": 0.7}}
    )
    run(project, spec)
    seeds = {}
    for arm in ARMS:
        assert Counter(row["sample"] for row in rows(project, arm, "sampling.jsonl")) == {0: 5, 1: 5, 2: 5}
        bodies = [
            body for server in fake.started for body in server.bodies if body["cache_salt"].startswith(arm + " s")
        ]
        assert {body["temperature"] for body in bodies} == {0.7}
        seeds[arm] = {body["seed"] for body in bodies}
    assert len(set.union(*seeds.values())) == 5 * 3 * len(ARMS), "no request shares its random numbers with another"


def test_task_items_are_answered_by_the_speculating_arms(fake: Any, project: Path) -> None:
    item = {"id": "i", "messages": [{"role": "user", "content": "say it"}], "expected": {"text": "say it"}}
    (project / "items.jsonl").write_text("".join(json.dumps({**item, "id": f"i{n}"}) + "\n" for n in range(5)))
    (project / "echo.yaml").write_text("task: echo\nitems: items.jsonl\nscorer: exact_match\n")
    evaluate = EvaluateSpec(tasks=("echo.yaml",), retries=0)
    run(project, evaluate=evaluate)
    for arm in ARMS:
        folder = project / "stage.tmp/arms" / arm / "quality"
        if arm in ("speculative", "both"):
            records = [json.loads(line) for line in (folder / "records/echo.jsonl").read_text().splitlines()]
            assert [record["scores"]["exact_match"] for record in records] == [1.0] * 5
        else:
            assert not folder.exists()


def test_traffic_of_the_tasks(fake: Any, project: Path) -> None:
    item = {"messages": [{"role": "user", "content": "say it"}], "expected": {"text": "say it"}}
    (project / "items.jsonl").write_text("".join(json.dumps({**item, "id": f"i{n}"}) + "\n" for n in range(5)))
    (project / "echo.yaml").write_text("task: echo\nitems: items.jsonl\nscorer: exact_match\n")
    spec = changed(traffic="tasks")
    run(project, spec, evaluate=EvaluateSpec(tasks=("echo.yaml",), retries=0))
    answers = rows(project, "quantized")
    assert {row["id"] for row in answers} == {f"echo/i{n}" for n in range(5)}
    assert all(row["accepted"] for row in answers)
    with pytest.raises(UsageError, match="no evaluate section"):
        run(project, spec)


# ------------------------------------------------------------------------------------------------- faults


def test_a_failing_request_is_counted(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_fails(server: Any, body: dict[str, Any]) -> str | None:
        return "error" if body["messages"][0]["content"] == "tell a tale" and server.speculates else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(one_fails))
    run(project)
    failed = [row for row in rows(project, "both") if row["error"]]
    assert len(failed) == 2
    assert "HTTP 500" in failed[0]["error"]


@pytest.mark.parametrize("interleave", ["auto", "never"])
def test_a_dying_server_names_its_arm(
    fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch, interleave: str
) -> None:
    def dies(server: Any, body: dict[str, Any]) -> str | None:
        return "die" if server.log.parent.name == "both" and len(server.bodies) > 20 else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(dies))
    with pytest.raises(EngineError, match="arm 'both': the vLLM server died") as caught:
        run(project, changed(interleave=interleave))
    log = project / "stage.tmp/arms/both/server.log"
    assert str(log) in caught.value.remedy
    assert caught.value.exit_code == 4
    assert not (project / "stage.tmp/speculate.json").exists()
    assert all(server.http is None for server in fake.started)  # none was left running


def test_a_server_that_hangs(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(server: Any, body: dict[str, Any]) -> str | None:
        return "hang" if server.speculates else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(hangs))
    spec = changed(request_timeout=0.3, warmup=0, max_concurrency=(8,), interleave="never")
    with pytest.raises(EngineError, match=r"arm 'speculative': the server hangs: 8 requests in a row"):
        run(project, spec)
    assert len(fake.started[2].bodies) < 32  # not all of them were waited for


def test_a_server_that_answers_nothing(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "behaviour", staticmethod(lambda server, body: "error"))
    with pytest.raises(EngineError, match="arm 'baseline': every one of 3 requests failed"):
        run(project)


@pytest.mark.parametrize("interleave", ["auto", "never"])
def test_a_server_that_does_not_start(fake: Any, project: Path, interleave: str) -> None:
    (project / "quantized").rename(project / "broken")
    with pytest.raises(EngineError, match=r"arm '(quantized|both)': the vLLM server did not start") as caught:
        run(project, changed(interleave=interleave), candidate="broken")
    assert "Use another scheme." in caught.value.remedy
    assert all(server.http is None for server in fake.started)


def test_ctrl_c_leaves_no_server(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sqtool.speculate.session.Session.turn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(project)
    assert len(fake.started) == 4
    assert all(server.http is None for server in fake.started)


# ------------------------------------------------------------------------------------------------- resuming


def interrupt(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch, spec: SpeculateSpec, after: int) -> Path:
    """Let the `both` arm die after so many requests; what the pipeline keeps of the attempt."""

    def dies(server: Any, body: dict[str, Any]) -> str | None:
        return "die" if server.log.parent.name == "both" and len(server.bodies) > after else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(dies))
    with pytest.raises(EngineError):
        run(project, spec)
    kept = project / "failed"
    discard(project / "stage", keep=kept)
    monkeypatch.setattr(fake, "behaviour", staticmethod(lambda server, body: None))
    fake.started.clear()
    return kept


def test_one_after_the_other_resumes_at_the_arm(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(interleave="never")
    kept = interrupt(fake, project, monkeypatch, spec, after=20)
    run(project, spec, earlier=kept)
    assert [server.log.parent.name for server in fake.started] == ["both", "baseline_again"]
    assert [len(rows(project, arm)) for arm in ARMS] == [32] * 5
    reused = [turn["arm"] for turn in read_json(project / "stage.tmp/plan.json")["schedule"] if turn["reused"]]
    assert reused == ["baseline", "quantized", "speculative"]


def test_interleaved_resumes_at_the_block(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(repeats=3)
    kept = interrupt(fake, project, monkeypatch, spec, after=3 + 32 + 10)  # in the second round
    run(project, spec, earlier=kept)
    assert len(fake.started) == 4
    for arm in ARMS:
        answers = rows(project, arm)
        assert Counter(row["round"] for row in answers) == {0: 32, 1: 32, 2: 32}
    reused = [turn for turn in read_json(project / "stage.tmp/plan.json")["schedule"] if turn["reused"]]
    assert {turn["round"] for turn in reused} == {0}
    assert len(reused) == 5
    assert all(len(server.bodies) <= 2 * (3 + 64) for server in fake.started)


def test_other_rules_are_no_other_plan(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(interleave="never")
    kept = interrupt(fake, project, monkeypatch, spec, after=20)
    run(project, changed(interleave="never", gate="block", rules=RulesSpec(max_p99_ratio=1.1)), earlier=kept)
    assert [server.log.parent.name for server in fake.started] == ["both", "baseline_again"]


def test_another_plan_begins_anew(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(interleave="never")
    kept = interrupt(fake, project, monkeypatch, spec, after=20)
    run(project, changed(interleave="never", max_tokens=64), earlier=kept)
    assert len(fake.started) == 5


# ------------------------------------------------------------------------------------------------- preflight


def check(project: Path, spec: SpeculateSpec = SPEC, draft: Path | None = None) -> Any:
    return preflight(
        spec, EngineSpec(), baseline=project / "target", candidate=project / "not-made-yet", draft=draft, root=project
    )


def test_preflight(fake: Any, project: Path) -> None:
    draft = project / "draft"
    assert [arm.name for arm in check(project, draft=draft)] == ARMS
    with pytest.raises(UsageError, match="no draft model"):
        check(project)
    check(project, changed(method="ngram"))
    with pytest.raises(DataError, match="no such traffic file"):
        check(project, changed(traffic="none.jsonl"), draft=draft)
    with pytest.raises(UsageError, match="not every request of the traffic has a timestamp"):
        check(project, changed(trace=True), draft=draft)
    (project / "traffic.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"traffic\.jsonl:1: messages: holds nothing to answer"):
        check(project, draft=draft)


def test_the_candidate_must_fit_the_draft_too(fake: Any, project: Path) -> None:
    (project / "quantized/tokenizer.json").write_text('{"model": {"vocab": {"b": 1}}}')
    with pytest.raises(UsageError, match="different tokenizers"):
        run(project)
    assert not fake.started


def test_interleaving_that_cannot_be(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqtool.speculate.schedule.free_bytes", lambda env: 1 << 30)
    run(project)
    plan = read_json(project / "stage.tmp/plan.json")
    assert (plan["interleaved"], plan["why"]) == (False, "4 servers take about 7.6 GiB, 1.0 GiB are free")
    with pytest.raises(UsageError, match=r"interleave is always, and not all servers can be up at once: 4 servers"):
        run(project, changed(interleave="always"))
