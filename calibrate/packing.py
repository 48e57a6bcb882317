"""Rows of equal length that hold whole conversations.

llm-compressor's default collator cuts every sample of a batch to the shortest one. Rows of equal length lose nothing,
and batches of them are several times faster than one sample at a time. Positions start anew with each conversation,
from which the model's attention knows that they have nothing to do with each other: each is seen as it is when served.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Packed conversations. Both arrays are int32 [rows, length]."""

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    """The token's place in its conversation; 0 starts the next one."""
    repeated: int
    """Tokens that fill gaps: starts of conversations that stand in the rows already."""


def pack(conversations: Sequence[Sequence[int]], length: int) -> Rows:
    """Each conversation once, whole and in one row (best fit, longest first), the gaps filled with starts of others.

    With fewer tokens in all than one row the row is as short as they are. Raises ValueError for a conversation that
    is empty or longer than `length`.
    """
    import numpy as np

    if not all(1 <= len(ids) <= length for ids in conversations):
        raise ValueError(f"a conversation is empty or longer than the rows of {length} tokens")
    length = min(length, sum(len(ids) for ids in conversations))
    longest_first = sorted(conversations, key=len, reverse=True)  # stable, so the same set gives the same rows
    rows: list[list[Sequence[int]]] = []
    room: list[tuple[int, int]] = []  # (tokens that still fit, row), ascending
    for ids in longest_first:
        at = bisect_left(room, (len(ids), 0))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = length, len(rows)
            rows.append([])
        rows[row].append(ids)
        if left > len(ids):
            insort(room, (left - len(ids), row))
    fillers = 0
    for left, row in room:
        gap = left
        while gap:
            filler = longest_first[fillers % len(longest_first)][:gap]
            rows[row].append(filler)
            gap -= len(filler)
            fillers += 1
    return Rows(
        np.array([[token for ids in row for token in ids] for row in rows], dtype=np.int32),
        np.array([[place for ids in row for place in range(len(ids))] for row in rows], dtype=np.int32),
        sum(left for left, _ in room),
    )
