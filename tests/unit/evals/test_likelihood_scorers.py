"""Scorers that ask for log-likelihoods: choice, perplexity."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.items import Item
from evals.records import record
from evals.run import summarise
from evals.scorers import Answer, Loglikelihood, make_scorer
from tests.unit.evals.builders import text_row


def choice_item(choices: list[str], right: int | None) -> Item:
    expected = {"text": "x"} if right is None else {"choice": right}
    return Item.model_validate({**text_row(1, "x"), "choices": choices, "expected": expected})


def likely(*logprobs: float, tokens: int | list[int] = 1) -> Answer:
    counts = [tokens] * len(logprobs) if isinstance(tokens, int) else tokens
    return Answer(
        loglikelihoods=tuple(Loglikelihood(p, n, greedy=False) for p, n in zip(logprobs, counts, strict=True))
    )


@pytest.mark.parametrize(
    ("options", "choices", "answer", "acc", "acc_norm"),
    [
        ({}, ["no", "yes"], likely(-2, -1), 1, 1),
        # By the sum the shorter one wins, by the length the longer one: -3/1 < -4/4.
        ({}, ["a", "aaaa"], likely(-3, -4), 0, 1),
        ({"normalise_by": "tokens"}, ["a", "aaaa"], likely(-3, -4, tokens=[1, 1]), 0, 0),
        ({"normalise_by": "tokens"}, ["a", "aaaa"], likely(-3, -4, tokens=[1, 2]), 0, 1),
        # é is one character and two bytes: -4/2 against -3/1 and -3/2.
        ({}, ["é", "ab"], likely(-3, -4), 0, 1),
        ({"normalise_by": "bytes"}, ["é", "ab"], likely(-3, -4), 0, 0),
        # Of equal ones the first is chosen, as lm-eval does it.
        ({}, ["ab", "cd"], likely(-1, -1), 0, 0),
        ({}, ["ab", "cd"], likely(-math.inf, -1), 1, 1),
        ({}, ["ab", "cd"], likely(-math.inf, -math.inf), 0, 0),
    ],
)
def test_choice(options: dict[str, str], choices: list[str], answer: Answer, acc: int, acc_norm: int) -> None:
    """The last choice is the right one."""
    scorer, item = make_scorer("choice", options), choice_item(choices, len(choices) - 1)
    assert scorer.check(item) is None
    assert scorer.asks == "loglikelihood"
    score = scorer.score(item, answer)
    assert score.scores == {"acc": acc, "acc_norm": acc_norm}
    assert score.failure == (None if acc else "wrong_choice")


def test_nan_is_never_right() -> None:
    item = choice_item(["a", "b"], 0)
    for logprobs in ((math.nan, -1.0), (-1.0, math.nan)):
        score = make_scorer("choice").score(item, likely(*logprobs))
        assert score.scores == {"acc": 0, "acc_norm": 0}
        assert score.failure == "not_a_number"
    with pytest.raises(ValueError, match="1 log-likelihoods for 2 choices"):
        make_scorer("choice").score(item, likely(-1.0))


def test_the_delimiter_is_asked_for_and_has_no_length() -> None:
    scorer = make_scorer("choice", {"delimiter": "   "})
    item = choice_item(["a", "aaaa"], 1)
    assert scorer.continuations(item) == ("   a", "   aaaa")
    assert scorer.score(item, likely(-3, -4)).scores["acc_norm"] == 1


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (choice_item(["a", "b"], None), "expected.choice"),
        (choice_item(["a", "b"], 2), "expected.choice"),
        (choice_item(["a"], 0), "choices"),
        (choice_item(["a", "a"], 0), "choices"),
        (Item.model_validate(text_row(1, "x")), "choices"),
    ],
)
def test_what_choice_needs(item: Item, field: str) -> None:
    problem = make_scorer("choice").check(item)
    assert problem is not None
    assert problem[0] == field


def test_perplexity_of_one_item_and_of_a_task() -> None:
    scorer = make_scorer("perplexity")
    rows = []
    for number, (text, logprob, tokens) in enumerate([("abcd", -4 * math.log(2), 4), ("é", -math.log(8), 1)]):
        item = Item.model_validate(text_row(number, text))
        assert scorer.continuations(item) == (text,)
        score = scorer.score(item, likely(logprob, tokens=tokens))
        assert score.failure is None
        rows.append(json.loads(json.dumps(record("t", item, likely(logprob, tokens=tokens), score, 8))))
    assert rows[0]["scores"] == {"token_probability": pytest.approx(0.5)}, "no gen_len of what was not generated"
    assert rows[1]["scores"]["token_probability"] == pytest.approx(1 / 8)
    totals = summarise(rows)["totals"]
    assert totals == {
        "nll": pytest.approx(7 * math.log(2)),
        "tokens": 5,
        "bytes": 6,
        "perplexity": pytest.approx(2 ** (7 / 5)),
        "bits_per_byte": pytest.approx(7 / 6),
    }


@given(st.floats(-1e6, 1e-6), st.integers(1, 1000))
def test_a_token_probability_is_a_score_of_the_gate(logprob: float, tokens: int) -> None:
    score = make_scorer("perplexity").score(Item.model_validate(text_row(1, "x")), likely(logprob, tokens=tokens))
    assert 0 <= score.scores["token_probability"] <= 1


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, math.inf])
def test_one_broken_item_leaves_a_task_without_perplexity(logprob: float) -> None:
    item = Item.model_validate(text_row(1, "x"))
    scorer = make_scorer("perplexity")
    broken, good = scorer.score(item, likely(logprob)), scorer.score(item, likely(-1.0))
    assert (broken.scores["token_probability"], broken.failure) == (0.0, "not_a_number")
    rows = [record("t", item, Answer(), score, 8) for score in (broken, good)]
    assert summarise(rows)["totals"]["perplexity"] is None


def test_a_perplexity_beyond_all_numbers_is_none() -> None:
    item = Item.model_validate(text_row(1, "x"))
    score = make_scorer("perplexity").score(item, likely(-1e5))
    assert score.scores["token_probability"] == 0.0
    assert summarise([record("t", item, Answer(), score, 8)])["totals"]["perplexity"] is None


def test_what_perplexity_needs() -> None:
    assert make_scorer("perplexity").check(choice_item(["a", "b"], 0)) is not None
    empty = Item.model_validate(text_row(1, ""))
    assert make_scorer("perplexity").check(empty) == ("expected.text", "empty: it has no tokens")
