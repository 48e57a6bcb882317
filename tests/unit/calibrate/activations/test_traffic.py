from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.activations.traffic import Sample, batches, sample, within
from calibrate.render import load_tokenizer, render
from tests.contract.tiny import make_tokenizer


def question(n: int) -> dict[str, Any]:
    return {"id": f"q{n}", "kind": "ask", "messages": [{"role": "user", "content": f"Question {n}?"}]}


def talk(n: int) -> dict[str, Any]:
    asked = question(n)
    return {**asked, "messages": [*asked["messages"], {"role": "assistant", "content": f"Answer {n}"}]}


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


def test_a_sample_is_whole_conversations_whatever_their_order(tokenizer: Any) -> None:
    records = [talk(n) for n in range(40)]
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
    records = [question(1), talk(2)]
    found, lost = sample(records, load_tokenizer(tmp_path), max_tokens=99, max_length=99)
    assert (len(found), lost) == (1, 1)


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
