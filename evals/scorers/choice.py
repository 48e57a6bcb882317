"""Multiple choice: which of an item's choices does the model find most probable?"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from evals.items import Item
from evals.scorers import Answer, Score
from sqtool.spec import Spec


class Choice(Spec):
    """acc is 1 when the right choice has the highest log-likelihood, acc_norm when it has it per character (or byte,
    or token), as lm-evaluation-harness defines them; of equal ones the first counts as chosen, as there.

    Failure layers: `wrong_choice` (acc is 0), `not_a_number` (a log-likelihood is NaN; both metrics are 0).
    """

    asks: ClassVar[str] = "loglikelihood"
    metrics: ClassVar[tuple[str, ...]] = ("acc", "acc_norm")
    failures: ClassVar[tuple[str, ...]] = ("wrong_choice", "not_a_number")

    normalise_by: Literal["characters", "bytes", "tokens"] = Field(
        default="characters", description="The length by which acc_norm divides; lm-eval's acc_norm takes characters."
    )
    delimiter: str = Field(
        default="", description="Text in front of each choice (lm-eval's target_delimiter); no part of its length."
    )

    def continuations(self, item: Item) -> tuple[str, ...]:
        return tuple(self.delimiter + choice for choice in item.choices or ())

    def check(self, item: Item) -> tuple[str, str] | None:
        if not item.choices or len(item.choices) < 2:
            return "choices", "missing (at least two), and the scorer choice needs them"
        if len(set(item.choices)) < len(item.choices):
            return "choices", "two of them are the same"
        if item.expected is None or item.expected.choice is None:
            return "expected.choice", "missing (the index of the right choice), and the scorer choice needs it"
        if item.expected.choice >= len(item.choices):
            return (
                "expected.choice",
                f"{item.expected.choice}, and there are {len(item.choices)} choices (0 is the first)",
            )
        return None

    def applies(self, _item: Item) -> tuple[str, ...]:
        return self.metrics

    def score(self, item: Item, answer: Answer) -> Score:
        assert item.choices is not None
        assert item.expected is not None
        right = item.expected.choice
        logprobs = [one.logprob for one in answer.loglikelihoods]
        if len(logprobs) != len(item.choices):
            raise ValueError(f"item {item.id}: {len(logprobs)} log-likelihoods for {len(item.choices)} choices")
        if any(math.isnan(value) for value in logprobs):
            return Score({"acc": 0.0, "acc_norm": 0.0}, "not_a_number")
        lengths = {
            "characters": [len(choice) for choice in item.choices],
            "bytes": [len(choice.encode()) for choice in item.choices],
            "tokens": [one.tokens for one in answer.loglikelihoods],
        }[self.normalise_by]
        scaled = [value / max(1, length) for value, length in zip(logprobs, lengths, strict=True)]
        chosen = logprobs.index(max(logprobs))
        scores = {"acc": float(chosen == right), "acc_norm": float(scaled.index(max(scaled)) == right)}
        if chosen == right:
            return Score(scores)
        return Score(scores, "wrong_choice", f"chose {chosen}: {item.choices[chosen]}")
