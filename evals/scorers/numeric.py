"""A number in an answer against the expected one, within a tolerance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, DecimalException, localcontext
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from evals.items import Item
from evals.scorers import Answer, Score
from evals.scorers.base import NO_TEXT, Generating, missing_text, no_text

DIGITS = 60
"""Significant digits of a difference; numbers are compared as decimals, so that 0.1 is 0.1."""


class Numeric(Generating):
    """numeric is 1 when the number taken from the answer is the expected one within the tolerance, else 0:
    |answer - expected| <= max(absolute, relative * |expected|).

    Failure layers: `truncated` (the last number of a cut answer may be a part of one), `called_tool`, `empty`,
    `no_number`, `wrong_number`.
    """

    metrics: ClassVar[tuple[str, ...]] = ("numeric",)
    failures: ClassVar[tuple[str, ...]] = (*NO_TEXT, "no_number", "wrong_number")

    absolute: float = Field(default=0.0, ge=0, description="Largest absolute difference that is still right.")
    relative: float = Field(default=0.0, ge=0, description="Largest difference as a share of the expected number.")
    take: Literal["last", "first", "only"] = Field(
        default="last", description="Which number of the answer counts; only: the answer must have just one."
    )
    thousands: Literal[",", ".", " ", "'", "_", ""] = Field(
        default=",", description="What may separate groups of three digits; empty for nothing."
    )
    decimal: Literal[".", ","] = Field(default=".", description="The decimal mark.")

    @model_validator(mode="after")
    def _two_marks(self) -> Numeric:
        if self.thousands == self.decimal:
            raise ValueError("thousands and decimal are the same mark")
        return self

    def numbers(self, text: str) -> Iterator[Decimal]:
        """Every number in a text, in order."""
        mark, point = re.escape(self.thousands), re.escape(self.decimal)
        grouped = rf"\d{{1,3}}(?:{mark}\d{{3}})+(?!\d)|" if self.thousands else ""
        # A sign directly behind a letter or digit is a hyphen or a minus between two numbers. A decimal mark there,
        # or behind another one, belongs to the text ("Rs.72", "is...72").
        bare = rf"(?<!(?u:[\w{point}])){point}\d+"
        pattern = rf"(?:(?<!\w)[-+\u2212])?(?:(?:{grouped}\d+)(?:{point}\d+)?|{bare})(?:[eE][-+]?\d+)?"
        for found in re.finditer(pattern, text, re.ASCII):
            digits = found.group().replace("\u2212", "-")
            if self.thousands:
                digits = digits.replace(self.thousands, "")
            try:
                yield Decimal(digits.replace(self.decimal, "."))
            except DecimalException:  # an exponent beyond what decimals can hold
                continue

    def check(self, item: Item) -> tuple[str, str] | None:
        problem = missing_text(item, "numeric")
        if problem is not None:
            return problem
        assert item.expected is not None
        for place, text in enumerate(item.expected.texts()):
            if len(list(self.numbers(text))) != 1:
                field = "expected.text" if place == 0 else f"expected.aliases.{place - 1}"
                return field, f"{text!r} does not hold exactly one number, and the scorer numeric needs it"
        return None

    def score(self, item: Item, answer: Answer) -> Score:
        assert item.expected is not None
        failure = no_text(answer)
        if failure == "truncated" and self.take == "first" and not answer.tool_calls:
            failure = None
        if failure is not None:
            return Score({"numeric": 0.0}, failure)
        said = list(self.numbers(answer.text))
        if not said:
            return Score({"numeric": 0.0}, "no_number")
        if self.take == "only" and len(said) > 1:
            return Score({"numeric": 0.0}, "wrong_number", f"{len(said)} numbers")
        number = said[-1] if self.take == "last" else said[0]
        wanted = [next(self.numbers(text)) for text in item.expected.texts()]
        if any(self._close(number, right) for right in wanted):
            return Score({"numeric": 1.0})
        return Score({"numeric": 0.0}, "wrong_number", f"expected {wanted[0]}, found {number}")

    def _close(self, number: Decimal, right: Decimal) -> bool:
        if number == right:
            return True
        with localcontext() as context:
            context.prec = DIGITS
            try:
                allowed = max(Decimal(str(self.absolute)), Decimal(str(self.relative)) * abs(right))
                return abs(number - right) <= allowed
            except DecimalException:  # a difference too large to write down
                return False
