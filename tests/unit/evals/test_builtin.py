"""Scores that every answer has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.scorers import Answer, ToolCall
from evals.scorers.builtin import builtin_scores, repeats


def test_scores() -> None:
    assert builtin_scores(Answer("word", (), "stop", 3, 64), 256) == {
        "gen_len": 0.25,
        "empty": 0.0,
        "truncated": 0.0,
        "repetition": 0.0,
    }
    assert builtin_scores(Answer(" \n", (), "length", 3, 300), 256)["gen_len"] == 1.0
    assert builtin_scores(Answer(" \n", (), "length", 3, 300), 256)["empty"] == 1.0
    assert builtin_scores(Answer("", (), "length"), 8)["truncated"] == 1.0
    assert builtin_scores(Answer("", (ToolCall("f", "{}"),), "tool_calls"), 8)["empty"] == 0.0


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("the cat sat on the mat and looked at the other cat for a while", False),
        ("so " * 20, True),
        ("na" * 30, True),
        ("aaaa", False),  # four letters are no loop
        ("It is 12. " + "The answer is 12. " * 4, True),
        ("The answer is 12. " * 2, False),
        ("1111111111111111111111111111111111111111111111111111", True),
        ("", False),
    ],
)
def test_repetition(text: str, loops: bool) -> None:
    assert repeats(text) is loops


@given(st.text(alphabet="abc ", min_size=1, max_size=40).filter(str.strip))
def test_anything_said_often_enough_is_a_loop(piece: str) -> None:
    assert repeats("x" + (piece.strip() + "|") * 60)
