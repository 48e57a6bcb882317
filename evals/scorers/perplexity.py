"""How probable the model finds the expected text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from evals.items import Item
from evals.scorers import Answer, Score
from evals.scorers.base import missing_text
from sqtool.spec import Spec


class Perplexity(Spec):
    """token_probability is the geometric mean of the probabilities of the expected text's tokens: 1 / perplexity of
    the item, in [0, 1] as the gate needs it. The task's summary has the perplexity over all tokens and bits per byte.

    Failure layer: `not_a_number` (the log-likelihood is NaN or infinite; the score is 0). An improbable text is no
    failure: there is no right and wrong here.
    """

    asks: ClassVar[str] = "loglikelihood"
    metrics: ClassVar[tuple[str, ...]] = ("token_probability",)
    failures: ClassVar[tuple[str, ...]] = ("not_a_number",)

    delimiter: str = Field(default="", description="Text between the prompt and the expected text.")

    def continuations(self, item: Item) -> tuple[str, ...]:
        assert item.expected is not None
        assert item.expected.text is not None
        return (self.delimiter + item.expected.text,)

    def check(self, item: Item) -> tuple[str, str] | None:
        problem = missing_text(item, "perplexity")
        if problem is not None:
            return problem
        return None if any(self.continuations(item)) else ("expected.text", "empty: it has no tokens")

    def applies(self, _item: Item) -> tuple[str, ...]:
        return self.metrics

    def score(self, item: Item, answer: Answer) -> Score:
        if len(answer.loglikelihoods) != 1 or answer.loglikelihoods[0].tokens < 1:
            raise ValueError(f"item {item.id}: expected the log-likelihood of one text, found {answer.loglikelihoods}")
        found = answer.loglikelihoods[0]
        if not math.isfinite(found.logprob):
            return Score({"token_probability": 0.0}, "not_a_number", totals={"not_a_number": 1})
        # Rounding may leave a certain token a little above probability 1.
        probability = min(1.0, math.exp(found.logprob / found.tokens))
        nbytes = len(self.continuations(item)[0].encode())
        totals = {"nll": -found.logprob, "tokens": found.tokens, "bytes": nbytes}
        return Score({"token_probability": probability}, totals=totals)


def over_all_tokens(totals: Mapping[str, float]) -> dict[str, Any]:
    """Perplexity and bits per byte from the sums over a task's items; None where an item's log-likelihood is none."""
    if totals.get("not_a_number") or not totals.get("tokens"):
        return {"perplexity": None, "bits_per_byte": None}
    per_token = totals["nll"] / totals["tokens"]
    return {
        "perplexity": math.exp(per_token) if per_token < 700 else None,
        "bits_per_byte": totals["nll"] / totals["bytes"] / math.log(2),
    }
