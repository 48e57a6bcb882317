"""Scores that every answer has, whatever the task: how long, whether empty, cut off, or caught in a loop.

They need no expected answer, and a broken end-of-text token, a lost template or a looping quantized model shows in them
first. Of `gen_len` more is not better, but much less is a sign of damage (MLPerf Inference holds generated lengths to
90 % of the reference); the other three should be low.
"""

from __future__ import annotations

from evals.scorers import Answer

BUILTIN = ("gen_len", "empty", "truncated", "repetition")
"""Metrics that say nothing about right and wrong."""
LONGEST_PERIOD = 64
LEAST_REPEATS = 4
LEAST_CHARACTERS = 48


def builtin_scores(answer: Answer, max_tokens: int) -> dict[str, float]:
    """gen_len (share of the allowed tokens), empty, truncated and repetition, each in [0, 1]."""
    said = answer.text + "".join(call.name + call.arguments for call in answer.tool_calls)
    return {
        "gen_len": min(answer.completion_tokens / max_tokens, 1.0),
        "empty": float(not said.strip()),
        "truncated": float(answer.finish_reason == "length"),
        "repetition": float(repeats(said)),
    }


def repeats(text: str) -> bool:
    """Whether the text ends in a loop: a piece of at most 64 characters, four times or more and 48 characters long."""
    text = text.rstrip()
    for period in range(1, LONGEST_PERIOD + 1):
        length = max(LEAST_REPEATS * period, LEAST_CHARACTERS)
        if length > len(text):
            return False
        tail = text[-length:]
        if tail[period:] == tail[:-period]:
            return True
    return False
