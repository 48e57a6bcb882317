"""The model over a server: the same numbers as lm-eval's transformers model, and what a bad server does to it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.engines.base import Limits
from evals.harness.completions import completion, ranked
from evals.harness.in_process import InProcess
from evals.harness.run import run
from evals.harness.served import Served
from evals.harness.spec import LmEvalSpec
from evals.scorers import Answer, Loglikelihood
from evals.spec import EvaluateSpec
from sqtool.errors import DataError, EngineError
from tests.unit.evals.harness.bars import Bars
from tests.unit.evals.harness.conftest import ROOT, TASKS, Completions, network

FEW = Limits(concurrency=4, timeout=30, retries=2)


def spec(*tasks: str, **more: Any) -> EvaluateSpec:
    return EvaluateSpec(tasks=(), drift=None, lm_eval=LmEvalSpec(tasks=tasks, include_path=TASKS, **more))


def served(tiny: Path, completions: Completions, **more: Any) -> Served:
    options = {"limits": FEW, "max_length": None, "seed": 0, "shuffled": False, **more}
    return Served.of(tiny, completions.endpoint, **options)


def rows(out: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records" / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("template", "vllm"), [(False, True), (True, True), (True, False)])
def test_it_agrees_with_the_transformers_model(
    tiny: Path, completions: Completions, tmp_path: Path, template: bool, vllm: bool
) -> None:
    completions.endpoint = replace(completions.endpoint, vllm=vllm)
    asked = spec("lookups", "lookup_prose", limit=6, apply_chat_template=template, num_fewshot=1)
    there, here = tmp_path / "there", tmp_path / "here"
    results = [
        run(asked, lm, root=ROOT, out=out, key="k")
        for lm, out in ((served(tiny, completions), there), (InProcess(network(tiny), batch_size=16), here))
    ]
    for task in ("lookup_text", "lookup_choice"):
        for left, right in zip(rows(there, task), rows(here, task), strict=True):
            found, known = left.pop("output"), right.pop("output")
            likely = [one.pop("loglikelihoods", []) for one in (found, known)]
            for row in (left, right):
                for name in ("gen_len", "truncated"):  # HFLM keeps no tokens, so those of its answers are estimates
                    row["scores"].pop(name, None)
            assert left == right
            assert found["text"] == known["text"]
            assert found["prompt_tokens"] == known["prompt_tokens"]
            for a, b in zip(*likely, strict=True):
                assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-3)
                assert (a["tokens"], a["greedy"]) == (b["tokens"], b["greedy"])
    figures = [each["lookup_prose"]["lm_eval"]["reported"] for each in results]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_requests_name_everything_that_a_checkpoint_could_change(
    tiny: Path, completions: Completions, tmp_path: Path
) -> None:
    run(spec("lookup_text", limit=2), served(tiny, completions), root=ROOT, out=tmp_path, key="k")
    body = completions.bodies[0]
    assert body["stop"] == ["\n"]
    assert body["max_tokens"] == 24
    assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert all(isinstance(token, int) for token in body["prompt"])


def test_other_servers_get_no_parameters_of_vllm(tiny: Path, completions: Completions, tmp_path: Path) -> None:
    completions.endpoint = replace(completions.endpoint, vllm=False)
    run(spec("lookup_text", "lookup_choice", limit=2), served(tiny, completions), root=ROOT, out=tmp_path, key="k")
    generated = {"model", "prompt", "max_tokens", "stop", "temperature"}
    likely = {"model", "prompt", "max_tokens", "echo", "logprobs", "temperature"}
    assert {frozenset(body) for body in completions.bodies} == {frozenset(generated), frozenset(likely)}
    completions.faults += [(200, {"choices": [{"text": "", "logprobs": None}]})] * 8
    with pytest.raises(EngineError, match="does not give the log-probabilities of a prompt"):
        run(spec("lookup_choice", limit=2), served(tiny, completions), root=ROOT, out=tmp_path, key="k")


def test_the_control_asks_in_another_order(tiny: Path, completions: Completions, tmp_path: Path) -> None:
    one = Limits(concurrency=1, timeout=30, retries=0)
    orders = []
    for shuffled in (False, True):
        completions.bodies.clear()
        lm = served(tiny, completions, limits=one, shuffled=shuffled)
        run(spec("lookup_choice", limit=4), lm, root=ROOT, out=tmp_path / str(shuffled), key="k")
        orders.append([body["prompt"] for body in completions.bodies])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert rows(tmp_path / "False", "lookup_choice") == rows(tmp_path / "True", "lookup_choice")


def test_repeats_are_drawn_anew(tiny: Path, completions: Completions) -> None:
    class Request:
        task_name, doc_id = "t", 3
        args = ("hello", {"until": [], "temperature": 0.7, "do_sample": True, "max_gen_toks": 2})

    completions.faults += [(200, {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": USAGE})] * 3
    lm = served(tiny, completions, seed=10)
    same = Request()
    assert lm.generate_until([same, same, same]) == ["x"] * 3
    assert sorted(body["seed"] for body in completions.bodies) == [10, 11, 12]
    assert completions.bodies[0]["temperature"] == 0.7
    assert len(lm.ledger.answers[3]) == 3


def test_long_prompts_are_cut_as_lm_eval_does_and_counted(tiny: Path, completions: Completions, tmp_path: Path) -> None:
    bars = Bars()
    lm = served(tiny, completions, max_length=64)
    results = run(spec("lookup_text", limit=3), lm, root=ROOT, out=tmp_path, key="k", progress=bars)
    assert {len(body["prompt"]) for body in completions.bodies} == {64 - 24}
    assert results["lookup_text"]["lm_eval"]["shortened"] == 3
    assert bars.notes == ["lookup_text: 3 prompts were cut to the model's context, as lm-eval does it"]


def test_an_answer_that_fills_the_context_is_an_error(tiny: Path, completions: Completions, tmp_path: Path) -> None:
    asked = spec("lookup_text", limit=1, gen_kwargs={"max_gen_toks": 2000})
    with pytest.raises(DataError, match="an answer may have 2000 tokens, and the model's context is 1024"):
        run(asked, served(tiny, completions), root=ROOT, out=tmp_path, key="k")


USAGE = {"prompt_tokens": 2, "completion_tokens": 1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((500, "oops"), "status 500: oops"),
        ((200, "no json"), "garbage"),
        ((200, {"choices": []}), "garbage: not a completion"),
        ((200, {"choices": [{"text": 5, "finish_reason": "stop"}], "usage": USAGE}), "must be strings"),
    ],
)
def test_faults_are_retried_and_never_scored(
    tiny: Path,
    completions: Completions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[int, Any],
    message: str,
) -> None:
    monkeypatch.setattr("evals.client.BACKOFF_SECONDS", 0.0)
    completions.faults += [fault] * 2
    run(spec("lookup_text", limit=1), served(tiny, completions), root=ROOT, out=tmp_path / "a", key="k")
    assert len(completions.bodies) == 3
    completions.faults += [fault] * 3
    with pytest.raises(EngineError, match=message):
        run(spec("lookup_text", limit=1), served(tiny, completions), root=ROOT, out=tmp_path / "b", key="k")
    assert list((tmp_path / "b" / "records").iterdir()) == []


def test_a_refusal_is_not_retried(tiny: Path, completions: Completions, tmp_path: Path) -> None:
    completions.faults.append((400, {"error": {"message": "no such thing"}}))
    lm = served(tiny, completions, limits=Limits(1, 30, 2))
    with pytest.raises(EngineError, match="refused item lookup_choice 0 at /v1/completions with status 400"):
        run(spec("lookup_choice", limit=1), lm, root=ROOT, out=tmp_path, key="k")
    assert len(completions.bodies) == 1


def test_parsing() -> None:
    good = {"choices": [{"text": "a", "finish_reason": "stop"}], "usage": USAGE}
    assert completion(good) == Answer("a", prompt_tokens=2, completion_tokens=1)
    places = [None, {"5": {"logprob": -1.5, "rank": 1}}, {"6": {"logprob": -0.5, "rank": 2}, "9": {"logprob": -0.1}}]
    answer = {"choices": [{"prompt_logprobs": places}]}
    assert ranked([1, 5, 6], [5, 6])(answer) == Loglikelihood(-2.0, 2, greedy=False)
    assert ranked([1, 5, 6], [6])(answer) == Loglikelihood(-0.5, 1, greedy=False)
    with pytest.raises(ValueError, match="3 places for 4 tokens"):
        ranked([1, 5, 6, 7], [7])(answer)
    with pytest.raises(ValueError, match="KeyError"):
        ranked([1, 5, 8], [8])(answer)


def test_a_tokenizer_without_an_end_token(tiny: Path, completions: Completions, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    with pytest.raises(DataError, match=r"tokenizer_config\.json: eos_token: the tokenizer has no end token"):
        served(model, completions)
