"""transformers in process, on a tiny random model in float32: what batching, padding and seeds must not change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evals.engines.base import Limits, Question
from evals.engines.chat import cut, hermes_calls, prompt_ids, text_ids
from evals.engines.hf import HfEngine
from evals.items import Item
from evals.scorers import Answer, ToolCall
from evals.spec import EngineSpec, GenerationSpec
from sqtool.errors import DataError, EngineError, UsageError
from sqtool.progress import SILENT
from tests.unit.evals.builders import text_row, tool_item
from tests.unit.evals.tiny import save_model

LIMITS = Limits(1, 1.0, 0)
HOT = GenerationSpec(temperature=1.2, top_p=0.9, top_k=50, max_tokens=12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"), dtype="float32")


def engine(tiny: Path, batch_size: int = 4, **more: Any) -> HfEngine:
    spec = EngineSpec(kind="hf", dtype="float32", device="cpu", batch_size=batch_size, **more)
    return HfEngine(spec, model=tiny, out=tiny, root=tiny, progress=SILENT)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Prompts of very different length, so that a batch is padded."""
    return [Item.model_validate(text_row(i, "x" * (17 * i + 1))) for i in range(7)]


def asked(engine: HfEngine, questions: Sequence[Question], generation: GenerationSpec) -> list[Answer]:
    got: dict[tuple[str, int], Answer] = {}
    engine.ask(questions, generation, LIMITS, seed=11, done=lambda q, a: got.__setitem__((q.item.id, q.sample), a))
    return [got[q.item.id, q.sample] for q in questions]


@pytest.fixture(scope="module")
def alone(tiny: Path) -> Iterator[HfEngine]:
    with engine(tiny, 1) as one:
        yield one


@pytest.fixture(scope="module")
def together(tiny: Path) -> Iterator[HfEngine]:
    with engine(tiny, 5) as many:
        yield many


@pytest.mark.parametrize(
    "generation",
    [
        GenerationSpec(max_tokens=12),
        HOT,
        GenerationSpec(temperature=0.7, min_p=0.05, repetition_penalty=1.3, max_tokens=12, seed=4),
        GenerationSpec(repetition_penalty=1.5, max_tokens=12),
    ],
)
def test_an_answer_does_not_depend_on_its_neighbours(
    alone: HfEngine, together: HfEngine, items: list[Item], generation: GenerationSpec
) -> None:
    questions = [Question(item) for item in items]
    first = asked(alone, questions, generation)
    assert asked(together, questions, generation) == first
    assert asked(together, questions[::-1], generation)[::-1] == first
    assert asked(together, questions[3:5], generation) == first[3:5], "nor on what was answered before"


def test_each_sample_has_its_own_seed(together: HfEngine, items: list[Item]) -> None:
    questions = [Question(items[0], n) for n in range(6)]
    answers = asked(together, questions, HOT)
    assert len({answer.text for answer in answers}) > 3
    assert asked(together, questions[2:3], HOT) == answers[2:3]
    shifted = GenerationSpec.model_validate({**HOT.model_dump(), "seed": 13})
    assert asked(together, questions[:1], shifted) == answers[2:3], "the third sample is the first of seed + 2"


def test_greedy_is_the_likeliest_token_each_time(alone: HfEngine, items: list[Item]) -> None:
    """Against a loop of whole forward passes without any cache."""
    import torch

    tokens = prompt_ids(alone._tokenizer, items[3])
    ids = torch.tensor([tokens])
    for _ in range(8):
        with torch.inference_mode():
            following = alone._model(ids, use_cache=False).logits[0, -1].argmax()
        if int(following) == 2:
            break
        ids = torch.cat([ids, following.view(1, 1)], -1)
    expected = alone._tokenizer.decode(ids[0, len(tokens) :], skip_special_tokens=True)
    (answer,) = asked(alone, [Question(items[3])], GenerationSpec(max_tokens=8))
    assert answer.text == expected
    assert answer.prompt_tokens == len(tokens)


def test_log_likelihoods_are_those_of_the_whole_distribution(together: HfEngine, items: list[Item]) -> None:
    import torch

    texts = (" yes", "n", " a much longer continuation")
    got: dict[str, Answer] = {}
    together.loglikelihoods(
        [Question(item) for item in items], lambda item: texts, LIMITS, done=lambda q, a: got.__setitem__(q.item.id, a)
    )
    for item in items:
        prompt = prompt_ids(together._tokenizer, item)
        for text, found in zip(texts, got[item.id].loglikelihoods, strict=True):
            ending = text_ids(together._tokenizer, text)
            with torch.inference_mode():
                logits = together._model(torch.tensor([prompt + ending]), use_cache=False).logits[0].double()
            rows = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
            expected = sum(float(row[token]) for row, token in zip(rows, ending, strict=True))
            assert found.logprob == pytest.approx(expected, abs=1e-4)
            assert found.tokens == len(ending)
            assert found.greedy == all(int(row.argmax()) == t for row, t in zip(rows, ending, strict=True))


def test_a_continuation_without_tokens_is_an_error(together: HfEngine, items: list[Item]) -> None:
    with pytest.raises(DataError, match="no tokens"):
        together.loglikelihoods([Question(items[0])], lambda item: ("",), LIMITS, done=lambda q, a: None)


def test_an_item_has_its_own_length_and_must_fit(together: HfEngine) -> None:
    short = Item.model_validate(text_row(1, "a", max_tokens=3))
    longer = Item.model_validate(text_row(2, "a", max_tokens=9))
    answers = asked(together, [Question(short), Question(longer)], GenerationSpec())
    assert [(a.completion_tokens, a.finish_reason) for a in answers if a.finish_reason == "length"]
    assert answers[0].completion_tokens <= 3
    assert answers[1].completion_tokens <= 9
    huge = Item.model_validate(text_row(3, "x" * 2000))
    with pytest.raises(DataError, match=r"item i3.*context"):
        asked(together, [Question(huge)], GenerationSpec())
    with pytest.raises(DataError, match=r"item i3.*context"):
        together.loglikelihoods([Question(huge)], lambda item: ("a",), LIMITS, done=lambda q, a: None)


def test_as_served_takes_what_the_checkpoint_says(tmp_path: Path, items: list[Item]) -> None:
    bent = save_model(tmp_path / "bent", dtype="float32")
    path = bent / "generation_config.json"
    stored = {**json.loads(path.read_text()), "repetition_penalty": 5.0}
    path.write_text(json.dumps(stored))
    questions = [Question(item) for item in items]
    served, greedy = GenerationSpec(as_served=True, max_tokens=12), GenerationSpec(max_tokens=12)
    penalised = GenerationSpec(repetition_penalty=5.0, max_tokens=12)
    with engine(bent) as one:
        assert asked(one, questions, served) == asked(one, questions, penalised)
        assert asked(one, questions, served) != asked(one, questions, greedy)
    path.write_text(json.dumps({**stored, "do_sample": True, "temperature": 1.5, "repetition_penalty": 1.0}))
    with engine(bent) as one:
        hot = GenerationSpec(temperature=1.5, top_k=50, max_tokens=12)
        assert asked(one, questions, served) == asked(one, questions, hot)
        assert asked(one, questions, greedy) != asked(one, questions, hot)


def test_a_folder_that_is_no_model(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(EngineError, match="tokenizer"):
        engine(tmp_path).__enter__()
    other = save_model(tmp_path / "other")
    (other / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="chat template"):
        engine(other).__enter__()
    (other / "chat_template.jinja").write_text((tiny / "chat_template.jinja").read_text())
    (other / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="transformers cannot load"):
        engine(other).__enter__()


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = EngineSpec(kind="hf", device="cuda")
    with pytest.raises(UsageError, match="no GPU"):
        HfEngine.check(spec, tmp_path)
    assert HfEngine.fingerprint(spec, tmp_path)["device"] == "absent"
    HfEngine.check(EngineSpec(kind="hf"), tmp_path)


def test_too_little_memory_is_an_error_with_a_remedy(
    together: HfEngine, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    monkeypatch.setattr(together._model, "generate", full)
    with pytest.raises(EngineError, match=r"Tried to allocate 9 GiB$") as caught:
        asked(together, [Question(items[0])], GenerationSpec())
    assert "batch_size" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call", "no call", ()),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", (ToolCall("f", '{"a": 1}'),)),
        (
            'so: <tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}',
            "so: ",
            (ToolCall("f", "{}"), ToolCall("g", "{}")),
        ),
        ('<tool_call>{"name": "f", "arguments": "é"}</tool_call>', "", (ToolCall("f", '"é"'),)),
        ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', ()),
        ('<tool_call>{"name": 1, "arguments": {}}', '<tool_call>{"name": 1, "arguments": {}}', ()),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", ()),
        ("<tool_call>[]</tool_call>", "<tool_call>[]</tool_call>", ()),
    ],
)
def test_hermes_calls(text: str, content: str, calls: tuple[ToolCall, ...]) -> None:
    assert hermes_calls(text) == (content, calls)


def test_a_parsed_call_ends_with_tool_calls(together: HfEngine) -> None:
    def answer(text: str, most: int = 99) -> Answer:
        ids = text_ids(together._tokenizer, text)
        return together._answer(tool_item(), 3, [*ids, 2, 0, 0], frozenset({2}), most)

    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    found = answer(call)
    assert (found.tool_calls, found.text, found.finish_reason) == ((ToolCall("f", "{}"),), "", "tool_calls")
    assert answer("plain").finish_reason == "stop"
    assert answer("plain", 3).finish_reason == "length"
    assert answer("plain", 3).text == "pla"
    assert answer("plain").completion_tokens == 6, "the stop token counts, as servers count it"


def test_cut() -> None:
    assert cut([5, 6, 2, 7], frozenset({2}), 9) == ([5, 6], True)
    assert cut([5, 6, 2, 7], frozenset({2}), 2) == ([5, 6], False)
    assert cut([], frozenset({2}), 2) == ([], False)


def test_a_template_that_refuses_names_the_item(tmp_path: Path) -> None:
    picky = save_model(tmp_path / "picky")
    (picky / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with engine(picky) as one, pytest.raises(DataError, match=r"item i1: .*roles must alternate"):
        asked(one, [Question(Item.model_validate(text_row(1, "a")))], GenerationSpec())
