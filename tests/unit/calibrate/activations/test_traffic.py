from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.activations.served import read_served, traffic_beside, with_answer
from calibrate.activations.traffic import Sample, batches, sample, within
from calibrate.render import load_tokenizer, render
from sqtool.errors import DataError
from tests.contract.tiny import make_tokenizer


def question(n: int, **more: Any) -> dict[str, Any]:
    return {"id": f"q{n}", "kind": "ask", "messages": [{"role": "user", "content": f"Question {n}?"}], **more}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def test_expected_answers_are_part_of_the_traffic() -> None:
    text = with_answer(question(1, expected={"text": "An answer"}))
    assert text["messages"][-1] == {"role": "assistant", "content": "An answer"}
    called = with_answer(question(1, expected={"calls": [{"name": "f", "arguments": {"x": 1}}]}))
    assert called["messages"][-1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert with_answer(question(1, expected={"calls": []})) == question(1, expected={"calls": []})
    assert with_answer(question(1)) == question(1)


def test_a_sample_is_whole_conversations_whatever_their_order(tokenizer: Any) -> None:
    records = [with_answer(question(n, expected={"text": f"Answer {n}"})) for n in range(40)]
    whole = {tuple(render(tokenizer, record)) for record in records}
    found, lost = sample(records, tokenizer, max_tokens=300, max_length=400)
    assert lost == 0
    assert {s.tokens for s in found} <= whole
    assert {s.kind for s in found} == {"ask"}
    tokens = sum(len(s.tokens) for s in found)
    assert 300 <= tokens < 300 + max(map(len, whole))
    random.Random(1).shuffle(records)
    assert sample(records, tokenizer, max_tokens=300, max_length=400) == (found, 0)
    everything, _ = sample(records, tokenizer, max_tokens=10**6, max_length=400)
    assert {s.tokens for s in everything} == whole


def test_long_conversations_are_cut_to_the_limit(tokenizer: Any) -> None:
    found, _ = sample([question(1)], tokenizer, max_tokens=99, max_length=5)
    assert [len(s.tokens) for s in found] == [5]


def test_what_the_template_cannot_render_is_counted(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, template="{{ messages[0].content }}{{ raise_exception('no') if messages|length > 1 }}")
    records = [question(1), with_answer(question(2, expected={"text": "x"}))]
    found, lost = sample(records, load_tokenizer(tmp_path), max_tokens=99, max_length=99)
    assert (len(found), lost) == (1, 1)


def test_bad_traffic_names_file_line_and_field(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", question(1), {"id": "x"})
    with pytest.raises(DataError, match=r"t\.jsonl.*2.*messages"):
        list(read_served(path))


def test_where_traffic_is(tmp_path: Path) -> None:
    model = tmp_path / "pair" / "target"
    model.mkdir(parents=True)
    assert traffic_beside(model) is None
    beside = tmp_path / "pair" / "data" / "traffic.jsonl"
    beside.parent.mkdir()
    write(beside, question(1, expected={"text": "yes"}))
    assert traffic_beside(model) == beside
    assert list(read_served(beside)) == [with_answer(question(1, expected={"text": "yes"}))]


lists = st.lists(st.builds(lambda n, k: Sample(tuple(range(n)), k), st.integers(1, 50), st.sampled_from("ab")))


@given(lists, st.integers(1, 200))
def test_batches_hold_every_sample_once_and_little_padding(samples: list[Sample], limit: int) -> None:
    groups = batches(samples, limit)
    key = repr
    assert sorted((s for group in groups for s in group), key=key) == sorted(samples, key=key)
    for group in groups:
        longest = max(len(s.tokens) for s in group)
        assert len(group) == 1 or len(group) * longest <= limit
        assert 4 * sum(len(s.tokens) for s in group) >= 3 * len(group) * longest


@given(lists, st.integers(0, 300))
def test_a_cap_takes_no_more_than_it_needs(samples: list[Sample], cap: int) -> None:
    kept = within(samples, cap)
    tokens = [len(s.tokens) for s in kept]
    assert sum(tokens) >= min(cap, sum(len(s.tokens) for s in samples))
    assert not tokens or sum(tokens[:-1]) < cap
