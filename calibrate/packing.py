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
    loss_mask: NDArray[np.int32] | None = None
    """1 where the loss looks, as `input_ids`; None when every token counts alike."""


def pack(conversations: Sequence[Sequence[int]], length: int, masks: Sequence[Sequence[int]] | None = None) -> Rows:
    """Each conversation once, whole and in one row (best fit, longest first), the gaps filled with starts of others.
    `masks` has a 0 or 1 for each token.

    With fewer tokens in all than one row the row is as short as they are. Raises ValueError for a conversation that
    is empty or longer than `length`.
    """
    import numpy as np

    if not all(1 <= len(ids) <= length for ids in conversations):
        raise ValueError(f"a conversation is empty or longer than the rows of {length} tokens")
    length = min(length, sum(len(ids) for ids in conversations))
    # Stable, so the same set gives the same rows.
    longest_first = sorted(range(len(conversations)), key=lambda n: -len(conversations[n]))
    rows: list[list[tuple[int, int]]] = []  # of each row: (conversation, how many of its tokens)
    room: list[tuple[int, int]] = []  # (tokens that still fit, row), ascending
    for number in longest_first:
        size = len(conversations[number])
        at = bisect_left(room, (size, 0))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = length, len(rows)
            rows.append([])
        rows[row].append((number, size))
        if left > size:
            insort(room, (left - size, row))
    fillers = 0
    for left, row in room:
        gap = left
        while gap:
            number = longest_first[fillers % len(longest_first)]
            size = min(gap, len(conversations[number]))
            rows[row].append((number, size))
            gap -= size
            fillers += 1

    def array(of: Sequence[Sequence[int]]) -> NDArray[np.int32]:
        return np.array([[v for number, size in row for v in of[number][:size]] for row in rows], dtype=np.int32)

    return Rows(
        array(conversations),
        array([range(len(ids)) for ids in conversations]),
        sum(left for left, _ in room),
        None if masks is None else array(masks),
    )
