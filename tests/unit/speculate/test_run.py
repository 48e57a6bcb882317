"""The four arms against the double: same traffic, every file written, faults named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec
from sqtool.errors import DataError, EngineError, UsageError
from sqtool.files import read_json, sha256_file
from sqtool.progress import SILENT
from sqtool.speculate.run import preflight, speculate
from sqtool.speculate.spec import SpeculateSpec

SPEC = SpeculateSpec(traffic="traffic.jsonl", requests=32, concurrency=4, warmup=3)


def run(root: Path, spec: SpeculateSpec = SPEC, candidate: str = "quantized", draft: str | None = "draft") -> Any:
    out = root / "out"
    out.mkdir(exist_ok=True)
    return speculate(
        spec,
        EngineSpec(),
        baseline=root / "target",
        candidate=root / candidate,
        draft=root / draft if draft else None,
        root=root,
        out=out,
        progress=SILENT,
        seed=0,
    )


def test_four_arms(fake: Any, project: Path) -> None:
    report = run(project)
    out = project / "out"
    assert report == read_json(out / "speculate.json")
    assert list(report["arms"]) == ["baseline", "quantized", "speculative", "both"]
    assert report["traffic"]["sha256"] == sha256_file(out / "traffic.jsonl")
    for name, arm in report["arms"].items():
        rows = [json.loads(line) for line in (out / "arms" / name / "requests.jsonl").read_text().splitlines()]
        assert len(rows) == arm["requests"] == 32
        assert arm["failures"]["count"] == 0
        assert arm["latency"]["ttft_ms"]["n"] == 32
        assert (out / "arms" / name / "server.log").is_file()
        assert arm["kinds"]["tool_simple"]["requests"] == 10
    assert all(entry["share"] == 1.0 for entries in report["agreement"].values() for entry in entries)
    assert report["arms"]["baseline"]["speculation"] is None
    both = report["arms"]["both"]["speculation"]
    assert both["cross_check"]["agree"] is True
    assert both["mean_acceptance_length"] == pytest.approx(1 + both["accepted_tokens"] / both["drafts"])
    assert report["acceptance_change"]["overall"]["acceptance_rate"] == 0
    assert report["arms"]["both"]["kinds"]["lookup"]["speculation"]["drafts"] > 0


def test_every_arm_gets_the_same_requests(fake: Any, project: Path) -> None:
    run(project, SPEC.model_copy(update={"concurrency": 1}))
    sent = [[body["messages"] for body in server.bodies] for server in fake.started]
    assert len(sent) == 4
    assert sent[0] == sent[1] == sent[2] == sent[3]
    assert len(sent[0]) == 3 + 32  # warm-up first
    flags = [server.extra_args for server in fake.started]
    assert flags[0] == flags[1] == []
    assert flags[2] == flags[3]
    assert json.loads(flags[2][1]) == {
        "method": "draft_model",
        "num_speculative_tokens": 4,
        "model": str((project / "draft").resolve()),
    }
    assert flags[2][2:] == ["--per-request-spec-decode-metrics", "summary"]


def test_older_servers_are_counted_by_blocks(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqtool.speculate.run.reports_per_request", lambda env: False)
    report = run(project)
    assert report["traffic"]["single_kind_blocks"] is True
    assert fake.started[2].extra_args[0::2] == ["--speculative-config"]
    kinds = report["arms"]["both"]["kinds"]
    assert (
        sum(kind["speculation"]["drafts"] for kind in kinds.values()) == report["arms"]["both"]["speculation"]["drafts"]
    )


def test_ngram_needs_no_draft(fake: Any, project: Path) -> None:
    run(project, SPEC.model_copy(update={"method": "ngram"}), draft=None)
    assert json.loads(fake.started[2].extra_args[1])["method"] == "ngram"


def test_a_failing_request_is_counted(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_fails(server: Any, body: dict[str, Any]) -> str | None:
        return "error" if body["messages"][0]["content"] == "tell a tale" and server.speculates else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(one_fails))
    report = run(project)
    assert report["arms"]["both"]["failures"]["count"] == 2
    assert "HTTP 500" in report["arms"]["both"]["failures"]["examples"][0]["error"]
    assert report["agreement"]["both"][0]["of"] == 30


def test_a_dying_server_names_its_arm(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(server: Any, body: dict[str, Any]) -> str | None:
        return "die" if server.speculates and len(server.bodies) > 20 else None

    monkeypatch.setattr(fake, "behaviour", staticmethod(dies))
    with pytest.raises(EngineError, match="arm 'speculative': the vLLM server died") as caught:
        run(project)
    log = project / "out/arms/speculative/server.log"
    assert str(log) in caught.value.remedy
    assert caught.value.exit_code == 4
    assert (log.parent / "requests.jsonl").stat().st_size > 0  # what was measured stays for the reader
    assert not (project / "out/speculate.json").exists()


def test_a_server_that_answers_nothing(fake: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "behaviour", staticmethod(lambda server, body: "error"))
    with pytest.raises(EngineError, match="arm 'baseline': every one of 3 requests failed"):
        run(project)


def test_a_server_that_does_not_start(fake: Any, project: Path) -> None:
    (project / "quantized").rename(project / "broken")
    with pytest.raises(EngineError, match="arm 'quantized': the vLLM server did not start") as caught:
        run(project, candidate="broken")
    assert "Use another scheme." in caught.value.remedy


def test_the_candidate_must_fit_the_draft_too(fake: Any, project: Path) -> None:
    (project / "quantized/tokenizer.json").write_text('{"model": {"vocab": {"b": 1}}}')
    with pytest.raises(UsageError, match="different tokenizers"):
        run(project)
    assert not fake.started


def test_preflight(project: Path) -> None:
    target, draft = project / "target", project / "draft"
    preflight(SPEC, target=target, draft=draft, root=project)
    preflight(SPEC.model_copy(update={"enabled": False, "traffic": "none"}), target=target, draft=None, root=project)
    with pytest.raises(UsageError, match="no draft model"):
        preflight(SPEC, target=target, draft=None, root=project)
    with pytest.raises(DataError, match="no such traffic file"):
        preflight(SPEC.model_copy(update={"traffic": "none.jsonl"}), target=target, draft=draft, root=project)
    (draft / "tokenizer.json").write_text('{"model": {"vocab": {"b": 1}}}')
    with pytest.raises(UsageError, match="different tokenizers"):
        preflight(SPEC, target=target, draft=draft, root=project)
    (draft / "config.json").write_text('{"vocab_size": 3}')
    with pytest.raises(UsageError, match="3 tokens and the target's 2"):
        preflight(SPEC, target=target, draft=draft, root=project)
