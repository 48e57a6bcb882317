"""The frozen traffic: stratified, ordered, the same every time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sqtool.speculate.traffic import Request, _apportion, choose


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
