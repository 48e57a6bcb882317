"""The engine's log-probabilities: how they are asked for, and what follows when they are not transformers'."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.client import Endpoint
from evals.drift import baseline_states, drift, kept_texts, texts_of
from evals.engine_check import FILE, EngineCheck, engine_logprobs, probe
from evals.engines.base import Limits
from evals.spec import DriftCheckSpec, DriftSpec, EvaluateSpec
from evals.texts import Text
from sqtool.errors import EngineError
from tests.unit.evals.builders import text_row
from tests.unit.evals.test_client import Scripted
from tests.unit.evals.tiny import save_model

LIMITS = Limits(concurrency=2, timeout=5.0, retries=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Endpoint]]:
    servers = []

    def start(script: Any) -> Endpoint:
        servers.append(Scripted(script))
        return Endpoint(servers[-1].url, "key", "model")

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def vllm(_number: int, body: dict[str, Any]) -> tuple[int, Any]:
    """As vLLM answers: the token itself and the k most likely ones, by id."""
    k = body["prompt_logprobs"]
    positions: list[Any] = [None]
    for token in body["prompt"][1:]:
        entries = {str(1000 + r): {"logprob": -0.5 * r, "rank": r, "decoded_token": "x"} for r in range(1, k + 1)}
        entries[str(token)] = {"logprob": -9.25, "rank": 77, "decoded_token": "y"}
        positions.append(entries)
    return 200, {"choices": [{"text": "z", "prompt_logprobs": positions}]}


def test_what_vllm_says(serve: Callable[[Any], Endpoint]) -> None:
    asked: list[Any] = []

    def script(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body)
        return vllm(number, body)

    found = engine_logprobs(serve(script), [[5, 6, 7], [8, 9]], 2, LIMITS)
    assert found[0] == {
        "tokens": [5, 6, 7],
        "ids": [[6, 1001, 1002], [7, 1001, 1002]],
        "logprobs": [[-9.25, -0.5, -1.0]] * 2,
    }
    assert [one["tokens"] for one in found] == [[5, 6, 7], [8, 9]], "in the order asked, whatever came first"
    assert {body["max_tokens"] for body in asked} == {1}


@pytest.mark.parametrize(
    "reply",
    [
        (400, {"error": {"message": "prompt_logprobs are not supported"}}),
        (200, {"choices": [{"text": "z"}]}),
        (200, {"choices": [{"prompt_logprobs": [None]}]}),
        (500, "broken"),
        None,
    ],
)
def test_an_engine_that_cannot_say_is_no_error_of_the_run(
    reply: Any, serve: Callable[[Any], Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evals.client.BACKOFF_SECONDS", 0.0)
    endpoint = serve(lambda *_: reply)
    with pytest.raises(EngineError, match="prompt log-prob"):
        engine_logprobs(endpoint, [[1, 2, 3]], 2, LIMITS)
    ask = probe(EvaluateSpec(retries=0), lambda: [Text("a", "k", [1, 2, 3], 1)], tmp_path)
    assert ask is not None
    ask(endpoint)
    check = EngineCheck(tmp_path / FILE)
    assert "prompt log-prob" in check.problem
    assert check.asked([Text("a", "k", [1, 2, 3], 1)]) is None
    assert check.summary(DriftCheckSpec()) == {"problem": check.problem, "passed": None}


def test_only_the_first_tokens_of_some_texts_are_asked(serve: Callable[[Any], Endpoint], tmp_path: Path) -> None:
    spec = EvaluateSpec(drift=DriftSpec(check=DriftCheckSpec(items=2, top_k=3, max_length=4)))
    texts = [Text(f"t{n}", "k", list(range(n, n + 6)), 1) for n in range(4)]
    ask = probe(spec, lambda: texts, tmp_path)
    assert ask is not None
    ask(serve(vllm))
    check = EngineCheck(tmp_path / FILE)
    found = check.asked(texts)
    assert found is not None
    ids, logs = found
    assert ids.shape == logs.shape == (20, 4)
    assert np.flatnonzero(ids[:, 0] >= 0).tolist() == [0, 1, 2, 10, 11, 12], "three positions of t0 and of t2"
    assert check.asked([Text("t0", "k", [7] * 6, 1)]) is None, "other tokens"
    assert EngineCheck(tmp_path / "none").problem.startswith("the engine was not asked")
    assert probe(EvaluateSpec(drift=None), lambda: texts, tmp_path) is None
    assert probe(EvaluateSpec(drift=DriftSpec(check=None)), lambda: texts, tmp_path) is None


def add(check: EngineCheck, gap: float, same: float, n: int = 1000) -> dict[str, Any]:
    ids = np.zeros((n, 3), dtype=np.int64)
    engine = np.full((n, 3), -1.0, dtype=np.float32)
    ours = engine + np.float32(gap)
    check.add(ids, engine, ours, ours[:, 1] + np.where(np.arange(n) < same * n, 0.0, 0.5).astype(np.float32))
    return check.summary(DriftCheckSpec(tolerance=0.2, min_top1=0.97))


def test_the_tolerance_decides(tmp_path: Path) -> None:
    good = add(EngineCheck(tmp_path / "x"), 0.1, 0.98)
    assert good["passed"] is True
    assert (good["positions"], good["top1_agreement"], good["top1_near"]) == (1000, 0.98, 0.98)
    assert good["logprob_p99"] == good["logprob_max"] == pytest.approx(0.1, abs=1e-6)
    assert add(EngineCheck(tmp_path / "x"), 0.3, 0.98)["passed"] is False
    assert add(EngineCheck(tmp_path / "x"), 0.1, 0.96)["passed"] is False
    assert add(EngineCheck(tmp_path / "x"), math.nan, 1.0) == {
        "problem": "one of the two gives NaN or infinity",
        "passed": False,
    }


@pytest.mark.parametrize("wrong", ["nothing", "baseline", "candidate", "absent"])
def test_drift_says_whether_it_is_comparable(wrong: str, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    """The engine played by transformers itself: the check passes, unless one side is served with other weights."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_jsonl("texts.jsonl", [text_row(i, f"number {i} " * (i + 1)) for i in range(6)])
    (tmp_path / "t.yaml").write_text("task: t\nitems: texts.jsonl\nscorer: exact_match\n")
    values = {"items": 6, "prose": None, "device": "cpu", "dtype": "float32", "check": {"items": 4, "top_k": 3}}
    spec = EvaluateSpec(tasks=("t.yaml",), drift=DriftSpec.model_validate(values))
    folders = {
        side: save_model(tmp_path / side, seed=at, dtype="float32") for at, side in enumerate(("baseline", "candidate"))
    }
    other = save_model(tmp_path / "other", seed=9, dtype="float32")
    states = tmp_path / "states"
    states.mkdir()
    texts = texts_of(spec, folders["baseline"], tmp_path)
    baseline_states(spec, model=folders["baseline"], texts=texts, out=states)
    engine = {}
    for side, folder in folders.items():
        engine[side] = tmp_path / f"served-{side}"
        engine[side].mkdir()
        if wrong == "absent":
            continue
        network = AutoModelForCausalLM.from_pretrained(other if wrong == side else folder, dtype="float32").eval()
        lines = []
        for text in kept_texts(states)[:4]:
            with torch.inference_mode():
                logs = torch.log_softmax(network(torch.tensor([text.tokens])).logits[0, :-1], -1)
            best = logs.topk(3, -1).indices
            ids = torch.cat([torch.tensor(text.tokens[1:]).unsqueeze(-1), best], -1)
            row = {"id": text.id, "tokens": text.tokens, "ids": ids.tolist(), "logprobs": logs.gather(-1, ids).tolist()}
            lines.append(json.dumps(row) + "\n")
        (engine[side] / FILE).write_text("".join(lines))
    found = drift(
        spec, baseline=folders["baseline"], candidate=folders["candidate"], states=states, out=tmp_path, engine=engine
    )
    expected = {"nothing": True, "absent": None}.get(wrong, False)
    assert found["check"]["comparable"] is expected
    for side in folders:
        assert found["check"][side]["passed"] is (expected if wrong in ("nothing", "absent") else wrong != side)
    if wrong == "nothing":
        assert found["check"]["candidate"]["logprob_max"] < 1e-4
        assert found["check"]["candidate"]["texts"] == 4
    plain = drift(spec, baseline=folders["baseline"], candidate=folders["candidate"], states=states, out=tmp_path)
    assert "check" not in plain
    assert plain["all"] == found["all"], "the check changes no figure"


def test_items_of_two_tasks_may_have_one_id(tmp_path: Path) -> None:
    rows = [{"id": "1", "tokens": [n] * 3, "ids": [[n, 5]] * 2, "logprobs": [[-n, 0]] * 2} for n in (1, 2)]
    (tmp_path / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = EngineCheck(tmp_path / FILE).asked([Text("1", "k", [2] * 3, 1), Text("1", "k", [1] * 3, 1)])
    assert found is not None
    assert found[1][:, 0].tolist() == [-2, -2, -1, -1]
