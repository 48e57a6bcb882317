"""The frozen traffic: stratified, ordered, the same every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.errors import DataError
from sqtool.speculate.traffic import Request, _apportion, choose, load_requests


def pool(**sizes: int) -> list[Request]:
    return [Request(f"{kind}{i}", kind, {}) for kind, size in sizes.items() for i in range(size)]


def test_every_kind_keeps_its_share() -> None:
    traffic = choose(pool(a=300, b=90, c=9, d=1), 100, 8, 0, single_kind_blocks=False)
    assert Counter(r.kind for r in traffic.requests) == {"a": 75, "b": 22, "c": 2, "d": 1}
    assert len(traffic.warmup) == 8
    assert not {r.id for r in traffic.warmup} & {r.id for r in traffic.requests}
    for block in traffic.blocks:  # each kind is spread over the blocks
        assert abs(sum(r.kind == "a" for r in block) / len(block) - 0.75) < 0.1


def test_the_same_seed_is_the_same_file() -> None:
    everything = pool(a=50, b=20)
    one, two, other = (choose(everything, 40, 4, seed, single_kind_blocks=False) for seed in (1, 1, 2))
    assert one == two
    assert one.sha256 == two.sha256 != other.sha256


def test_single_kind_blocks() -> None:
    traffic = choose(pool(a=50, b=20), 35, 0, 0, single_kind_blocks=True)
    assert sorted({r.kind for r in block} for block in traffic.blocks) == [{"a"}, {"b"}]


def test_fewer_requests_than_asked_for() -> None:
    traffic = choose(pool(a=3, b=2), 100, 8, 0, single_kind_blocks=False)
    assert len(traffic.requests) == 5
    assert len(traffic.warmup) == 5  # nothing is left outside the sample


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(1, 400))
def test_apportion(sizes: list[int], count: int) -> None:
    named = {f"k{i}": size for i, size in enumerate(sizes)}
    count = min(count, sum(sizes))
    shares = _apportion(named, count)
    assert sum(shares.values()) == count
    assert all(0 <= shares[name] <= named[name] for name in named)
    if count >= len(sizes):
        assert min(shares.values()) >= 1


def test_load(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    items = [
        {"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "cut off"}]},
        {
            "id": "b",
            "kind": "tool_simple",
            "max_tokens": 5,
            "tools": [{"type": "function"}],
            "messages": [
                {"role": "user", "content": "do"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "done"},
            ],
        },
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    first, second = load_requests(path, 64)
    assert (first.kind, first.body["max_tokens"], len(first.body["messages"])) == ("all", 64, 1)
    assert second.body["max_tokens"] == 5
    assert second.body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": []}', "id: must be a text"),
        ('{"id": "a", "messages": []}', "nothing to answer"),
        ('{"id": "a", "messages": ["hi"]}', "list of chat messages"),
        ('{"id": "a", "messages": [{"role": "user"}], "max_tokens": 0}', "positive whole number"),
        ('{"id": "a", "messages": [{"role": "user"}]}\n{"id": "a", "messages": []}', "occurs twice"),
        ("", "holds no requests"),
        ("{", "not JSON"),
    ],
)
def test_bad_traffic(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_requests(path, 64)
