from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.packing import Rows, pack


def pieces(rows: Rows) -> list[tuple[int, ...]]:
    """The conversations of the rows, cut where positions start anew."""
    found: list[list[int]] = []
    for ids, places in zip(rows.input_ids.tolist(), rows.position_ids.tolist(), strict=True):
        for token, place in zip(ids, places, strict=True):
            if place == 0:
                found.append([])
            assert len(found[-1]) == place
            found[-1].append(token)
    return [tuple(piece) for piece in found]


def test_a_set_shorter_than_a_row_is_one_short_row() -> None:
    rows = pack([[1, 2], [3]], 8)
    assert rows.input_ids.tolist() == [[1, 2, 3]]
    assert rows.position_ids.tolist() == [[0, 1, 0]]
    assert rows.repeated == 0


def test_gaps_are_filled_with_starts_of_other_conversations() -> None:
    rows = pack([[1, 2], [3, 4, 5]], 3)
    assert rows.input_ids.tolist() == [[3, 4, 5], [1, 2, 3]]
    assert rows.position_ids.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert rows.repeated == 1


def test_short_ones_go_where_they_fit_best() -> None:
    rows = pack([[1] * 6, [2] * 4, [3] * 3, [4] * 2], 8)
    assert [sorted(set(row)) for row in rows.input_ids.tolist()] == [[1, 4], [1, 2, 3]]


@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=40),
    st.integers(16, 40),
)
def test_every_conversation_stands_whole_in_one_row(lengths: list[int], length: int) -> None:
    conversations = [[1000 * number + place for place in range(n)] for number, n in enumerate(lengths)]
    rows = pack(conversations, length)
    assert rows.input_ids.shape == rows.position_ids.shape
    assert rows.input_ids.shape[1] == min(length, sum(lengths))
    assert rows.input_ids.size == sum(lengths) + rows.repeated
    found = Counter(pieces(rows))
    assert not Counter(tuple(ids) for ids in conversations) - found
    starts = {tuple(ids[:n]) for ids in conversations for n in range(1, len(ids) + 1)}
    assert set(found) <= starts
    again = pack(conversations, length)
    assert again.input_ids.tolist() == rows.input_ids.tolist()


@pytest.mark.parametrize("bad", [[[1, 2, 3]], [[1], []]])
def test_what_does_not_fit_is_an_error(bad: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="longer than the rows of 2"):
        pack(bad, 2)
