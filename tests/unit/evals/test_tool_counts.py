"""The sweep by number of tools: paired, deterministic, within the reference model's context."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evals.items import Item
from evals.spec import EvaluateSpec
from evals.tasks import Task, load_task
from sqtool.errors import DataError
from tests.unit.evals.builders import called, tool, tool_row

ROOT = Path(__file__).resolve().parents[3]
Writer = Callable[..., Path]


@pytest.fixture(scope="module")
def shipped() -> Task:
    return load_task("tool_count", ROOT, EvaluateSpec())


def names(item: Item) -> list[str]:
    return [offered["function"]["name"] for offered in item.tools or ()]


def test_each_request_once_with_every_count(shipped: Task) -> None:
    groups: dict[str | None, list[Item]] = {}
    for item in shipped.items:
        groups.setdefault(item.cluster, []).append(item)
    assert len(groups) == 120
    for group in groups.values():
        assert [len(item.tools or ()) for item in group] == [1, 2, 4, 8, 16]
        assert [item.slice_fields()["n_tools"] for item in group] == [1, 2, 4, 8, 16]
        assert len({item.messages for item in group}) == 1
        for fewer, more in pairwise(group):
            assert set(names(fewer)) < set(names(more)), "two counts differ by the added tools alone"
        for item in group:
            assert item.expected is not None
            assert item.expected.calls
            assert {call.name for call in item.expected.calls} <= set(names(item))


def test_the_needed_tool_stands_anywhere(shipped: Task) -> None:
    places = [
        names(item).index(item.expected.calls[0].name)
        for item in shipped.items[-120:]
        if item.expected and item.expected.calls
    ]
    assert len(set(places)) > 10


def test_prompts_stay_below_the_reference_models_context(shipped: Task) -> None:
    from tokenizers import Tokenizer

    from reference.chat import prompt_text

    tokenizer: Any = Tokenizer.from_file(str(ROOT / "artifacts/reference/target/tokenizer.json"))
    prompts = [
        prompt_text([m.model_dump(exclude_unset=True) for m in item.messages], list(item.tools or ()))
        for item in shipped.items
    ]
    longest = max(len(found.ids) for found in tokenizer.encode_batch(prompts))
    assert 1000 < longest < 2048 - 256


@pytest.mark.parametrize("limit", [5, 48, 100, 120, 599])
def test_a_limit_keeps_every_count(shipped: Task, limit: int) -> None:
    some = load_task("tool_count", ROOT, EvaluateSpec(limit=limit)).items
    assert {len(item.tools or ()) for item in some} == {1, 2, 4, 8, 16}


def test_it_is_the_same_every_time(shipped: Task) -> None:
    assert load_task("tool_count", ROOT, EvaluateSpec()).items == shipped.items


@pytest.fixture
def sweep(tmp_path: Path, write_jsonl: Writer) -> Callable[..., Task]:
    def sweep(rows: list[Any], counts: str = "[1, 2]") -> Task:
        write_jsonl("x.jsonl", rows)
        (tmp_path / "t.yaml").write_text(
            f"task: t\nitems: {{file: x.jsonl, tool_counts: {counts}}}\nscorer: tool_calls\nslices: [n_tools]\n"
        )
        return load_task("t.yaml", tmp_path, EvaluateSpec(tasks=("t.yaml",)))

    return sweep


def test_only_requests_that_need_one_tool(sweep: Callable[..., Task]) -> None:
    weather = {"name": "weather", "arguments": {"city": "Rome"}}
    timer = {"name": "timer", "arguments": {"seconds": 1}}
    rows = [
        tool_row([weather, weather], id="same tool twice", cluster="c"),
        tool_row([weather, timer], id="two tools"),
        tool_row([], id="none"),
    ]
    one, two = sweep(rows).items
    assert (one.id, two.id, one.cluster) == ("same tool twice-tools1", "same tool twice-tools2", "c")
    assert (names(one), set(names(two))) == (["weather"], {"weather", "timer"})
    assert (
        sweep(rows).scorer.score(two, called(("weather", {"city": "Rome"}), ("weather", {"city": "Rome"}))).failure
        is None
    )


def test_what_cannot_be_swept(sweep: Callable[..., Task]) -> None:
    weather = tool_row([{"name": "weather", "arguments": {"city": "Rome"}}])
    with pytest.raises(DataError, match="has 2 tools of different names, and a count of 4 is asked for"):
        sweep([weather], "[1, 4]")
    with pytest.raises(DataError, match="no item expects calls of exactly one tool"):
        sweep([tool_row([])])
    with pytest.raises(DataError, match=r"x\.jsonl:1: expected\.calls\.0"):
        sweep(
            [
                tool_row(
                    [{"name": "weather", "arguments": {"town": "Rome"}}],
                    tools=[tool("weather", {"city": {}}, ["city"])],
                ),
                weather,
            ]
        )
