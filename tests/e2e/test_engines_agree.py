"""The three kinds of engine on the same questions: a real vLLM server, the same server as somebody else's endpoint, and
transformers. One server start; its checkpoint has a generation_config that would bend every answer that let it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from evals.engines import open_engine
from evals.engines.base import Engine, Limits, Question
from evals.engines.openai import OpenAiEngine
from evals.engines.vllm import VllmEngine
from evals.items import Item, take
from evals.scorers import Answer, Loglikelihood
from evals.spec import EngineSpec, EvaluateSpec, GenerationSpec
from evals.tasks import load_task

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "artifacts" / "reference" / "target"
KEY = "SQTOOL_TEST_ENGINE_KEY"
LIMITS = Limits(16, 120.0, 1)
GREEDY = GenerationSpec(max_tokens=96)
ITEMS = 36
TOLERANCE = 1e-3
"""Nats a token, float32 on both sides. Seen: 3e-5 at most."""

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@dataclass
class Engines:
    vllm: Engine
    openai: Engine
    hf: Engine


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    out = tmp_path_factory.mktemp("engines")
    bent = out / "bent"
    shutil.copytree(REFERENCE, bent)
    stored = json.loads((bent / "generation_config.json").read_text())
    stored.update(do_sample=True, temperature=1.5, top_k=3, repetition_penalty=2.0)
    (bent / "generation_config.json").write_text(json.dumps(stored))
    patch = pytest.MonkeyPatch()
    with (
        open_engine(EngineSpec(dtype="float32"), model=bent, out=out, root=ROOT) as vllm,
        open_engine(EngineSpec(kind="hf", dtype="float32", device="cpu"), model=bent, out=out, root=ROOT) as hf,
    ):
        assert isinstance(vllm, VllmEngine)
        assert vllm.endpoint is not None
        patch.setenv(KEY, vllm.endpoint.api_key)
        remote = EngineSpec(kind="openai", base_url=vllm.endpoint.base_url, model="model", api_key_env=KEY)
        OpenAiEngine.check(remote, ROOT)
        with open_engine(remote, model=bent, out=out, root=ROOT) as openai:
            yield Engines(vllm, openai, hf)
    patch.undo()


@pytest.fixture(scope="module")
def items() -> list[Item]:
    spec = EvaluateSpec()
    every = [item for task in ("tool_calls", "tasks", "recall") for item in load_task(task, ROOT, spec).items]
    return take(every, ITEMS)


def asked(engine: Engine, items: Sequence[Item], generation: GenerationSpec) -> list[Answer]:
    got: dict[str, Answer] = {}
    engine.ask(
        [Question(item) for item in items],
        generation,
        LIMITS,
        seed=0,
        done=lambda question, answer: got.__setitem__(question.item.id, answer),
    )
    return [got[item.id] for item in items]


def likely(engine: Engine, items: Sequence[Item]) -> list[Loglikelihood]:
    got: dict[str, Answer] = {}
    engine.loglikelihoods(
        [Question(item) for item in items],
        continuations,
        LIMITS,
        done=lambda question, answer: got.__setitem__(question.item.id, answer),
    )
    return [one for item in items for one in got[item.id].loglikelihoods]


def continuations(item: Item) -> tuple[str, ...]:
    return (item.expected.text if item.expected and item.expected.text else "yes", " nobody knows", "42")


def test_vllm_and_transformers_give_the_same_greedy_answers(engines: Engines, items: list[Item]) -> None:
    """Calls, texts, how they ended and their numbers of tokens; and no sampling parameter of the checkpoint counts."""
    ours, theirs = asked(engines.hf, items, GREEDY), asked(engines.vllm, items, GREEDY)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"same greedy answers: {same} of {len(items)}")
    assert any(answer.tool_calls for answer in theirs)
    assert any(not answer.tool_calls for answer in theirs)
    assert same >= len(items) - 1, [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]


def test_as_served_is_what_the_checkpoint_says(engines: Engines, items: list[Item]) -> None:
    for engine in (engines.vllm, engines.openai, engines.hf):
        served = asked(engine, items, GenerationSpec(as_served=True, max_tokens=96))
        greedy = asked(engines.hf, items, GREEDY)
        different = sum(a != b for a, b in zip(served, greedy, strict=True))
        print(f"answers as served that differ from greedy ones: {different} of {len(items)}")
        assert different > len(items) // 2


def test_samples_are_seeded(engines: Engines, items: list[Item]) -> None:
    hot = GenerationSpec(temperature=1.5, max_tokens=48)
    for engine in (engines.vllm, engines.hf):
        first, again = asked(engine, items[:8], hot), asked(engine, items[:8], hot)
        assert first == again
        assert asked(engine, items[:8], hot.model_copy(update={"seed": 5})) != first


def test_log_likelihoods_agree(engines: Engines, items: list[Item]) -> None:
    sides = {name: likely(getattr(engines, name), items) for name in ("hf", "vllm", "openai")}
    assert len(sides["hf"]) == 3 * len(items)
    for name in ("vllm", "openai"):
        pairs = list(zip(sides["hf"], sides[name], strict=True))
        assert all(a.tokens == b.tokens for a, b in pairs)
        gap = max(abs(a.logprob - b.logprob) / a.tokens for a, b in pairs)
        print(f"log-likelihoods of {name} and hf: {len(pairs)}, at most {gap:.2g} nats a token apart")
        assert gap < TOLERANCE
        assert sum(a.greedy != b.greedy for a, b in pairs) <= 1
    assert any(one.greedy for one in sides["hf"])
    assert not all(one.greedy for one in sides["hf"])
