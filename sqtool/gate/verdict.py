"""The verdict: the design's three outcomes over all gated metrics and slices, as the file that records it.

    PASS          every gated metric's lower bound is above minus its margin (an intersection-union test: the chance
                  of accepting a drop as large as a margin is at most alpha, without correction)
    REGRESSED     a field beside the weights is not the baseline's, and nobody allowed that; or, for some gated metric
                  or slice, the harm test, Holm-adjusted over all of them, rejects "no drop", and the drop seen is at
                  or past the margin (the chance under no change is at most alpha in all)
    INCONCLUSIVE  anything else, and whatever an engine says that does not agree with itself

`sqtool.gate.judge` makes it; this module is what others read it with.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sqtool.errors import EXIT_RELEASED
from sqtool.gate.acceptance import exit_code_of, is_undecided
from sqtool.gate.compare import Outcome
from sqtool.gate.control import Control

SCHEMA = "sqtool.verdict/2"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class WorstItem(_Part):
    """An item that got worse, with both answers, so that a person can look."""

    id: str
    kind: str | None
    baseline_score: float
    candidate_score: float
    baseline_output: Any
    candidate_output: Any
    expected: Any


class MetricVerdict(_Part):
    """One metric on all items, or on one slice of them.

    `difference`, `lower` and `upper` are candidate minus baseline, turned round for metrics that should be low, so
    that negative is always worse. `margin` is absolute here; `margin_kind` says how the recipe gave it. `p_value` and
    `p_adjusted` are of "no drop" (None for diagnostic metrics, which are in no family of tests), `pass_p_value` of
    "the drop is at least the margin" where that was tested exactly or by the sequence, `sequence_p_value` of "the
    drop is at most the margin" at any time. `declared` items were to be asked; `items` were.
    """

    metric: str
    slice_field: str | None = None
    slice_value: str | None = None
    require: Literal["no_harm", "pass"] = "pass"
    gated: bool
    direction: Literal["higher", "lower"]
    outcome: Literal["PASS", "REGRESSED", "INCONCLUSIVE", "NOT_JUDGED"]
    reason: str
    items: int
    declared: int
    clusters: int
    baseline: float
    candidate: float
    difference: float
    lower: float
    upper: float
    margin: float
    margin_kind: Literal["absolute", "relative"]
    improved: int = Field(description="Items whose score rose (for a metric that should be low: fell).")
    worsened: int
    interval: str
    design_effect: float
    test: str
    p_value: float | None = None
    p_adjusted: float | None = None
    pass_p_value: float | None = None
    sequence_p_value: float | None = None
    alpha: float = Field(description="One-sided error rate of this metric's PASS.")
    items_to_decide: int | None = Field(default=None, description="At the behaviour seen; None when not reachable.")
    items_for_power: int | None = Field(default=None, description="The same, deciding with a chance of 80 %.")
    worst: tuple[WorstItem, ...] = ()

    @property
    def name(self) -> str:
        """`task.metric`, with `[field=value]` for a slice."""
        return self.metric if self.slice_field is None else f"{self.metric}[{self.slice_field}={self.slice_value}]"


class RecordsHash(_Part):
    """One file that the verdict rests on."""

    file: str
    sha256: str
    items: int


class Difference(_Part):
    """A field of the candidate's generation_config, tokenizer or chat template that is not the baseline's."""

    file: str
    field: str
    baseline: str
    candidate: str
    allowed: bool = False

    @property
    def name(self) -> str:
        """As `gate.allow_differences` names it."""
        return f"{self.file}:{self.field}"


class Stopped(_Part):
    """Where the evaluation ended before its last item: in `task`, after `items` of the `of` declared ones."""

    task: str
    items: int
    of: int


class Verdict(_Part):
    """What the gate decided, and everything needed to check it."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    outcome: Outcome
    reasons: tuple[str, ...]
    inconclusive: Literal["refuse", "allow"]
    alpha: float
    early_stop: Literal["off", "regressed", "both"]
    stopped: tuple[Stopped, ...] = ()
    not_measured: tuple[str, ...] = Field(default=(), description="Gated metrics that were left out by stopping.")
    control: Control | None = None
    differences: tuple[Difference, ...] = Field(
        default=(), description="Beside the weights; one that is not allowed refuses, whatever the scores are."
    )
    tests_in_family: int
    metrics: tuple[MetricVerdict, ...]
    slices: tuple[MetricVerdict, ...]
    notes: tuple[str, ...]
    inputs: dict[str, dict[str, RecordsHash]]
    bindings: dict[str, Any]
    spec: dict[str, Any]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def exit_code(self) -> int:
        """0 PASS (or undecided where the recipe allows it), 1 REGRESSED, 3 INCONCLUSIVE."""
        return exit_code_of(self.outcome, self.inconclusive, undecided=self.undecided)

    @property
    def undecided(self) -> bool:
        """Whether the items could not tell, which is all that `inconclusive: allow` covers."""
        gated = [m.outcome for m in (*self.metrics, *self.slices) if m.gated]
        return is_undecided(self.outcome, steady=self.control is None or self.control.stable, parts=gated)

    @property
    def accepted(self) -> bool:
        """Whether the candidate may be released."""
        return self.exit_code == EXIT_RELEASED

    def metric(self, name: str) -> MetricVerdict:
        """The whole metric called `name`; KeyError when the verdict has none."""
        for entry in self.metrics:
            if entry.metric == name:
                return entry
        raise KeyError(name)

    def to_json(self) -> str:
        """The verdict file's text: the same verdict is always the same bytes."""
        value = self.model_dump(mode="json", by_alias=True)
        return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """Read `to_json`'s text; pydantic's ValidationError when it is not a verdict of this schema."""
        verdict = cls.model_validate_json(text)
        if verdict.schema_ != SCHEMA:
            raise ValueError(f"verdict has schema {verdict.schema_!r}, this version reads {SCHEMA!r}")
        return verdict
