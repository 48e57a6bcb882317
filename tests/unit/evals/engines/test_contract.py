"""What every kind of engine does: each question answered once, in any order, and what it says of itself.

vllm and openai ask the fake server, hf a tiny random model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evals import client
from evals.engines import ENGINES, SAME_ON_BOTH_SIDES, engine_class, open_engine
from evals.engines.base import Engine, Limits, Question
from evals.items import Item
from evals.run import run_task
from evals.scorers import Answer, Score
from evals.server import VllmServer
from evals.spec import EngineSpec, EvaluateSpec, GenerationSpec
from evals.tasks import Task, load_task
from sqtool.errors import EngineError
from tests.unit.evals.builders import text_row, tool_item
from tests.unit.evals.tiny import save_model

KEY = "SQTOOL_FAKE_KEY"
LIMITS = Limits(4, 10.0, 2)
GREEDY = GenerationSpec(max_tokens=6)
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"), dtype="float32")


@pytest.fixture(params=sorted(ENGINES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine_spec(
    kind: str, tiny: Path, fake_env: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    if kind == "hf":
        yield EngineSpec(kind="hf", dtype="float32", device="cpu", batch_size=3)
    elif kind == "vllm":
        yield EngineSpec(env=str(fake_env), startup_timeout=30)
    else:
        with VllmServer(tiny, EngineSpec(startup_timeout=30), log=tmp_path / "fake.log", python_env=fake_env) as server:
            monkeypatch.setenv(KEY, server.api_key)
            yield EngineSpec(kind="openai", base_url=server.base_url + "/v1/", model="model", api_key_env=KEY)


def opened(spec: EngineSpec, tiny: Path, tmp_path: Path) -> Engine:
    (tmp_path / "out").mkdir(exist_ok=True)
    return open_engine(spec, model=tiny, out=tmp_path / "out", root=tmp_path)


def items(count: int = 7) -> list[Item]:
    return [Item.model_validate(text_row(i, f"word {i}" * (i + 1))) for i in range(count)] + [tool_item()]


def asked(engine: Engine, questions: list[Question], generation: GenerationSpec = GREEDY) -> dict[Any, Answer]:
    got: dict[Any, Answer] = {}

    def done(question: Question, answer: Answer) -> None:
        key = question.item.id, question.sample
        assert key not in got, "answered twice"
        got[key] = answer

    engine.ask(questions, generation, LIMITS, seed=3, done=done)
    return got


def test_every_question_is_answered_once(engine_spec: EngineSpec, tiny: Path, tmp_path: Path) -> None:
    with opened(engine_spec, tiny, tmp_path) as engine:
        questions = [Question(item) for item in items()]
        first = asked(engine, questions)
        assert set(first) == {(q.item.id, 0) for q in questions}
        assert asked(engine, questions[::-1]) == first, "greedy answers do not depend on the order"
        assert all(a.prompt_tokens and a.completion_tokens and not a.loglikelihoods for a in first.values())
        two = asked(
            engine, [Question(questions[0].item, n) for n in range(2)], GenerationSpec(temperature=1, samples=2)
        )
        assert len(two) == 2
        assert dict(engine.retried) == {}


def test_what_done_raises_comes_out(engine_spec: EngineSpec, tiny: Path, tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def done(question: Question, answer: Answer) -> None:
        raise EnoughError

    with opened(engine_spec, tiny, tmp_path) as engine, pytest.raises(EnoughError):
        engine.ask([Question(item) for item in items()], GREEDY, LIMITS, seed=0, done=done)


def test_one_log_likelihood_a_continuation(engine_spec: EngineSpec, tiny: Path, tmp_path: Path) -> None:
    texts = (" yes", "no", " 0123456789")
    got: dict[str, Answer] = {}
    with opened(engine_spec, tiny, tmp_path) as engine:
        engine.loglikelihoods(
            [Question(item) for item in items()],
            lambda item: texts,
            LIMITS,
            done=lambda question, answer: got.__setitem__(question.item.id, answer),
        )
    assert len(got) == 8
    for answer in got.values():
        assert [one.tokens for one in answer.loglikelihoods] == [len(text) for text in texts], "a token is a byte"
        assert all(one.logprob < 0 for one in answer.loglikelihoods)
        assert answer.prompt_tokens > 0
    if engine_spec.kind == "vllm":
        first = got["i0"].loglikelihoods[0]
        assert first.logprob == pytest.approx(-sum(b" yes") / 1000)
        assert not first.greedy, "an odd byte is not the likeliest"


def test_facts_are_complete_and_name_no_secret(
    engine_spec: EngineSpec, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(engine_spec, tiny, tmp_path) as engine:
        facts = engine.facts()
        key = engine.endpoint.api_key if engine.endpoint is not None else None
    assert set(SAME_ON_BOTH_SIDES) <= set(facts)
    text = json.dumps(facts)
    if key is not None:
        assert key not in text
        assert not any(key in path.read_text() for path in tmp_path.rglob("*.json"))


def test_what_is_known_before_anything_starts(engine_spec: EngineSpec, tmp_path: Path) -> None:
    kind = engine_class(engine_spec)
    kind.check(engine_spec, tmp_path)
    assert json.dumps(kind.fingerprint(engine_spec, tmp_path))


class Choices:
    """A scorer that asks for probabilities: right when `right` is likelier than `wrong`."""

    metrics: ClassVar[tuple[str, ...]] = ("right",)
    failures: ClassVar[tuple[str, ...]] = ("wrong",)
    asks: ClassVar[str] = "loglikelihood"

    def continuations(self, item: Item) -> tuple[str, ...]:
        return (item.expected.text or "" if item.expected else "", "something else")

    def check(self, item: Item) -> None:
        return None

    def applies(self, item: Item) -> tuple[str, ...]:
        return self.metrics

    def score(self, item: Item, answer: Answer) -> Score:
        right, wrong = answer.loglikelihoods
        return Score(
            {"right": float(right.logprob > wrong.logprob)}, None if right.logprob > wrong.logprob else "wrong"
        )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(text_row(i, f"w{i}")) + "\n" for i in range(6)))
    (tmp_path / "t.yaml").write_text("task: t\nitems: t.jsonl\nscorer: exact_match\ngeneration: {max_tokens: 4}\n")
    return load_task(str(tmp_path / "t.yaml"), tmp_path, EvaluateSpec())


def test_a_task_of_probabilities_resumes_like_any_other(
    engine_spec: EngineSpec, tiny: Path, tmp_path: Path, task: Task
) -> None:
    task = replace(task, scorer=Choices())

    class StopError(Exception):
        pass

    class Impatient(Choices):
        """Its fifth item stops everything, as a kill would."""

        def continuations(self, item: Item) -> tuple[str, ...]:
            if item.id == "i4":
                raise StopError
            return super().continuations(item)

    one = engine_spec.model_copy(update={"batch_size": 1}) if engine_spec.kind == "hf" else engine_spec
    spec = EvaluateSpec(concurrency=1)
    with opened(one, tiny, tmp_path) as engine:
        with pytest.raises(StopError):
            run_task(replace(task, scorer=Impatient()), engine, spec, key="k", out=tmp_path / "out")
        assert not (tmp_path / "out/records/t.jsonl").exists()
        kept = len((tmp_path / "out/records/t.jsonl.part").read_text().splitlines())
        assert kept >= 3
        summary, _ = run_task(task, engine, spec, key="k", out=tmp_path / "out", resume_from=tmp_path / "out")
    assert (summary["resumed"], summary["n"], summary["retried"]) == (kept, 6, {})
    assert set(summary["metrics"]) == {"right"}, "what was not said has no length and is not empty"
    rows = [json.loads(line) for line in (tmp_path / "out/records/t.jsonl").read_text().splitlines()]
    assert all(len(row["output"]["loglikelihoods"]) == 2 for row in rows)


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that has this fault from its start on."""
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("FAKE_VLLM", request.param)
    return str(request.param)


@pytest.mark.parametrize("kind", ["vllm", "openai"])
@pytest.mark.parametrize("fault", ["busy:3", "die_after:2"], indirect=True)
def test_faults_of_a_server_are_counted_and_never_scored(
    fault: str, kind: str, engine_spec: EngineSpec, tiny: Path, tmp_path: Path, task: Task
) -> None:
    with opened(engine_spec, tiny, tmp_path) as engine:
        if fault == "die_after:2":
            with pytest.raises(EngineError):
                run_task(task, engine, EvaluateSpec(concurrency=1, retries=1), key="k", out=tmp_path / "out")
            assert not (tmp_path / "out/records/t.jsonl").exists()
            assert len((tmp_path / "out/records/t.jsonl.part").read_text().splitlines()) == 2
        else:
            summary, _ = run_task(task, engine, EvaluateSpec(concurrency=1), key="k", out=tmp_path / "out")
            assert summary["retried"] == {"status 503": 3}
            assert summary["metrics"]["exact_match"] == 1.0


def test_a_server_without_log_probabilities_says_so(
    tiny: Path, tmp_path: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "no_echo")
    with VllmServer(tiny, EngineSpec(startup_timeout=30), log=tmp_path / "fake.log", python_env=fake_env) as server:
        monkeypatch.setenv(KEY, server.api_key)
        spec = EngineSpec(kind="openai", base_url=server.base_url, model="model", api_key_env=KEY)
        with (
            opened(spec, tiny, tmp_path) as engine,
            pytest.raises(EngineError, match="does not give the log-prob") as e,
        ):
            engine.loglikelihoods([Question(items()[0])], lambda item: ("a",), LIMITS, done=lambda q, a: None)
    assert "kind: vllm" in e.value.remedy


def test_as_served_names_no_sampling_parameter(
    tiny: Path, tmp_path: Path, fake_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches a vLLM server that was told to take its defaults from the checkpoint."""
    bodies = tmp_path / "bodies.jsonl"
    monkeypatch.setenv("FAKE_VLLM_BODIES", str(bodies))
    with opened(EngineSpec(env=str(fake_env), startup_timeout=30), tiny, tmp_path) as engine:
        flags = engine.facts()["flags"]
        for generation in (GREEDY, GenerationSpec(as_served=True)):
            asked(engine, [Question(items()[0])], generation)
    assert flags[flags.index("--generation-config") + 1] == "auto"
    greedy, served = (json.loads(line) for line in bodies.read_text().splitlines())
    assert set(served) == {"model", "messages", "max_tokens"}
    assert set(greedy) - set(served) == {"temperature", *client.NEUTRAL}
