from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from calibrate.choose import choose, shares
from calibrate.pool import Counts, Entry, Pool


def pool(*sources: dict[str, int]) -> Pool:
    """A source for each argument: so many entries of each kind, their prompts 1, 2, ... characters long."""
    entries = []
    for number, kinds in enumerate(sources):
        flat = [kind for kind, count in kinds.items() for _ in range(count)]
        entries.append(
            tuple(Entry(number, Path(f"s{number}"), n + 1, n, kind, (), n + 1) for n, kind in enumerate(flat))
        )
    counted = tuple(Counter(kinds) for kinds in sources)
    return Pool(tuple(f"s{n}" for n in range(len(sources))), tuple(entries), Counts(), counted, BytesIO())


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 50)), min_size=1, max_size=6),
    st.integers(0, 200),
)
def test_shares_add_up_and_never_exceed_a_source(sources: list[tuple[float, int]], total: int) -> None:
    weights, sizes = [w for w, _ in sources], [n for _, n in sources]
    got = shares(weights, sizes, total)
    assert sum(got) == min(total, sum(sizes))
    assert all(0 <= n <= size for n, size in zip(got, sizes, strict=True))


def test_shares_follow_the_weights() -> None:
    assert shares([3, 1], [1000, 1000], 100) == [75, 25]
    assert shares([1, 1, 1], [1000, 1000, 1000], 100) == [34, 33, 33]
    # What the small source cannot give goes to the other.
    assert shares([1, 1], [5, 1000], 100) == [5, 95]


def test_the_choice_is_the_seeds_and_has_no_entry_twice() -> None:
    source = pool({"a": 300, "b": 100}, {"a": 50})
    one, same = (choose(source, [2, 1], 60, seed=1, shuffle=True) for _ in range(2))
    assert one == same
    assert len(set(one)) == 60
    assert Counter(e.source for e in one) == {0: 40, 1: 20}
    assert one != choose(source, [2, 1], 60, seed=2, shuffle=True)


def test_another_source_does_not_change_what_the_first_gives() -> None:
    alone = choose(pool({"a": 300}), [1], 30, seed=1, shuffle=True)
    beside = choose(pool({"a": 300}, {"b": 300}), [1, 1], 60, seed=1, shuffle=True)
    assert set(alone) == {e for e in beside if e.source == 0}


def test_without_shuffle_it_is_the_first_ones() -> None:
    assert [e.line for e in choose(pool({"a": 10}), [1], 3, seed=1, shuffle=False)] == [1, 2, 3]


def test_a_rare_kind_gets_its_minimum_and_the_others_their_share() -> None:
    source = pool({"common": 900, "middle": 95, "rare": 5})
    kinds = Counter(e.kind for e in choose(source, [1], 50, seed=0, shuffle=True, at_least=2))
    assert kinds["rare"] == 2
    assert kinds["middle"] in (4, 5)
    assert sum(kinds.values()) == 50
    # A minimum that does not fit in the total is given up; coverage then says what is missing.
    few = choose(source, [1], 3, seed=0, shuffle=True, at_least=2)
    assert len(few) == 3


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1),
    st.integers(1, 120),
    st.integers(0, 5),
)
def test_the_stratified_choice_keeps_its_promises(kinds: dict[str, int], total: int, at_least: int) -> None:
    source = pool(kinds)
    chosen = choose(source, [1], total, seed=0, shuffle=True, at_least=at_least)
    counts = Counter(e.kind for e in chosen)
    assert len(set(chosen)) == len(chosen) == min(total, sum(kinds.values()))
    least = {kind: min(at_least, size) for kind, size in kinds.items()}
    if sum(least.values()) <= total:
        assert all(counts[kind] >= n for kind, n in least.items())


def test_shares_follow_the_whole_source_where_only_a_part_is_considered() -> None:
    source = pool({"common": 50, "rare": 50})
    source.kinds[0].update({"common": 950})  # the rest of the source, of which nothing is kept
    kinds = Counter(e.kind for e in choose(source, [1], 21, seed=0, shuffle=True, at_least=0))
    assert kinds == {"common": 20, "rare": 1}


def test_the_traffic_says_how_many_of_each_kind_and_length() -> None:
    source = pool({"a": 100, "b": 100})  # a: 1 to 100 characters, b: 101 to 200
    traffic = {("a", "8-15"): 30, ("a", "64-127"): 10, ("b", "128-255"): 60, ("nobody", "1"): 5}
    chosen = choose(source, [1], 20, seed=0, shuffle=True, at_least=0, by_length=True, traffic=traffic)
    assert Counter((e.kind, e.bin) for e in chosen) == {("a", "8-15"): 6, ("a", "64-127"): 2, ("b", "128-255"): 12}


def test_a_stratum_that_the_traffic_lacks_is_taken_last() -> None:
    source = pool({"a": 5, "b": 100})
    kinds = Counter(e.kind for e in choose(source, [1], 20, seed=0, shuffle=True, at_least=0, traffic={("a", "1"): 1}))
    assert kinds == {"a": 5, "b": 15}


def test_lengths_keep_their_share_within_a_kind() -> None:
    chosen = choose(pool({"a": 127}), [1], 32, seed=0, shuffle=True, at_least=0, by_length=True)
    # 64 of 127 prompts are 64 to 127 characters long, 32 are 32 to 63.
    assert Counter(e.bin for e in chosen)["64-127"] in (16, 17)
    assert Counter(e.bin for e in chosen)["32-63"] == 8
