"""The `gate` section of a recipe: which metrics decide, by which margin, at which error rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from sqtool.errors import UsageError
from sqtool.spec import Spec

DEFAULT_MAX_DROP = 0.02
LOWER_IS_BETTER = ("empty", "truncated", "repetition")
"""Built-in metrics that should be low."""
GEN_LEN = "gen_len"
"""Length of the answers: recorded as a share of `max_tokens`, judged as a share of the longest answer."""
BUILT_IN = (GEN_LEN, *LOWER_IS_BETTER)
"""Metrics that every task has beside its scorer's own (`evals.scorers.builtin`)."""
DEFAULT_METRICS = ("tool_calls.schema_valid", "tool_calls.call_match", "tasks.exact_match", "recall.exact_match")


SMALLEST = 1e-4
"""A margin of a hundredth of a point needs 30,000 items; one near the smallest float has no number of items at all."""


class MetricRule(Spec):
    """What one metric must show.

    The margin is `max_drop` (absolute: 0.02 is two points) or `relative` (a share of the baseline's mean: 0.01 lets
    a baseline of 0.50 fall to 0.495), never both; with neither it is `max_drop: 0.02`.
    """

    max_drop: float | None = Field(
        default=None, ge=SMALLEST, lt=1, description="Largest acceptable absolute drop, from 0.0001 to below 1."
    )
    relative: float | None = Field(
        default=None,
        ge=SMALLEST,
        lt=1,
        description="Largest acceptable drop as a share of the baseline's mean, from 0.0001 to below 1.",
    )
    gated: bool = Field(default=True, description="false: measured and reported, but it decides nothing.")
    direction: Literal["higher", "lower"] = Field(default="higher", description="Which way is better.")
    min_items: int | None = Field(default=None, ge=1, description="Fewer paired items than this never pass.")
    alpha: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="One-sided error rate of this metric's PASS; default: the gate's. Refusals use the gate's.",
    )

    @model_validator(mode="after")
    def _one_margin(self) -> Self:
        if self.max_drop is not None and self.relative is not None:
            raise ValueError("give max_drop (absolute) or relative (share of the baseline), not both")
        if self.relative is not None and self.direction == "lower":
            raise ValueError("a relative margin needs direction: higher; give max_drop for a metric that should be low")
        return self

    @property
    def absolute_margin(self) -> float | None:
        """The absolute margin, or None where the margin is relative."""
        if self.relative is not None:
            return None
        return DEFAULT_MAX_DROP if self.max_drop is None else self.max_drop


class SliceRule(Spec):
    """A part of the items that is judged on its own, for every gated metric.

    One slice per value of `field`, or, where `bins` are given, per interval of its numbers: `bins: [1, 4]` makes
    `up to 1`, `over 1, up to 4` and `over 4`. An interval contains its upper end and not its lower one.
    """

    field: str = Field(
        min_length=1,
        description="`kind`, `n_tools` (tools offered), `prompt_tokens` (as the engine counted), or the name of an "
        "entry of the items' `fields`.",
    )
    bins: tuple[int | float, ...] | None = Field(
        default=None, min_length=1, description="Upper ends of intervals of a numeric field, increasing."
    )
    require: Literal["no_harm", "pass"] = Field(
        default="no_harm", description="no_harm: blocks only when REGRESSED; pass: must PASS like a whole metric."
    )

    @model_validator(mode="after")
    def _bins_increase(self) -> Self:
        if self.bins is None:
            return self
        if self.field == "kind":
            raise ValueError("kind is a text and has no bins; leave bins out for one slice per kind")
        for left, right in pairwise(self.bins):
            if not left < right:
                raise ValueError(f"bins must increase strictly: {right:g} follows {left:g}")
        return self

    def bin_names(self) -> list[str]:
        """Names of all intervals from the lowest to the highest, one more than `bins`; [] without bins."""
        if self.bins is None:
            return []
        ends = [_shown(end) for end in self.bins]
        between = [f"over {low}, up to {high}" for low, high in pairwise(ends)]
        return [f"up to {ends[0]}", *between, f"over {ends[-1]}"]

    def ordered(self, names: Iterable[str]) -> list[str]:
        """The distinct slice names among `names`: intervals from low to high, other values by name. An empty name
        (an item that is in no slice) is left out."""
        found = set(names) - {""}
        return sorted(found) if self.bins is None else [name for name in self.bin_names() if name in found]


def _shown(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _short_metric(value: Any) -> Any:
    """`metric: 0.02` means `metric: {max_drop: 0.02}`; `metric: diagnostic` means `metric: {gated: false}`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"max_drop": value}
    if value == "diagnostic":
        return {"gated": False}
    return {} if value is None else value


def _short_slice(value: Any) -> Any:
    return {"field": value} if isinstance(value, str) else value


ShortMetric = Annotated[
    MetricRule, BeforeValidator(_short_metric, json_schema_input_type=MetricRule | float | Literal["diagnostic"] | None)
]
ShortSlice = Annotated[SliceRule, BeforeValidator(_short_slice, json_schema_input_type=SliceRule | str)]


def _oriented(name: str, rule: MetricRule) -> MetricRule:
    """The rule, with the direction of a built-in metric where none was written."""
    if "direction" in rule.model_fields_set or name.rpartition(".")[2] not in LOWER_IS_BETTER:
        return rule
    if rule.relative is not None:
        raise ValueError(f"{name} should be low, and a relative margin is for metrics that should be high; max_drop")
    return rule.model_copy(update={"direction": "lower"})


def diagnostic(name: str) -> MetricRule:
    """The rule of a metric that nobody wrote one for."""
    return _oriented(name, MetricRule(gated=False))


def _default_metrics() -> dict[str, MetricRule]:
    return {name: MetricRule(max_drop=DEFAULT_MAX_DROP) for name in DEFAULT_METRICS}


class GateSpec(Spec):
    """How the gate decides. Metrics that the records have and this mapping has not are diagnostic."""

    metrics: dict[str, ShortMetric] = Field(
        default_factory=_default_metrics, description="<task>.<metric> -> margin, or a mapping with the whole rule."
    )
    alpha: float = Field(
        default=0.05, gt=0, lt=0.5, description="One-sided error rate; the intervals cover 1 - 2 alpha."
    )
    inconclusive: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="What becomes of a candidate about which the items measured cannot decide. allow covers no shown "
        "regression, and no engine that does not agree with itself.",
    )
    min_items: int = Field(default=1, ge=1, description="Fewer paired items than this never pass, for any metric.")
    slices: list[ShortSlice] = Field(
        default_factory=list, description="Fields of the items whose values are judged apart, named before evaluation."
    )
    early_stop: Literal["off", "regressed", "both"] = Field(
        default="regressed",
        description="Whether the evaluation may end before its last item. regressed: as soon as a drop beyond the "
        "margin is certain. both: also as soon as every gated metric has passed, which takes more items to prove. "
        "off: never.",
    )
    allow_differences: list[str] = Field(
        default_factory=list,
        description="Fields beside the weights that may differ between baseline and candidate, written FILE:FIELD as "
        "the verdict names them, such as generation_config.json:temperature. Any other difference refuses.",
    )

    @field_validator("metrics")
    @classmethod
    def _names_and_something_gated(cls, metrics: dict[str, MetricRule]) -> dict[str, MetricRule]:
        for name in metrics:
            task, dot, metric = name.rpartition(".")
            if not (dot and task and metric):
                raise ValueError(f"{name!r} is no metric name; write <task>.<metric>, such as tasks.exact_match")
        if not any(rule.gated for rule in metrics.values()):
            raise ValueError("no metric is gated, so everything would pass; gate at least one")
        return {name: _oriented(name, rule) for name, rule in metrics.items()}

    @field_validator("slices")
    @classmethod
    def _each_slice_once(cls, slices: list[SliceRule]) -> list[SliceRule]:
        fields = [rule.field for rule in slices]
        if len(set(fields)) < len(fields):
            raise ValueError("a slice field is listed twice")
        return slices

    @model_validator(mode="after")
    def _lengths_pass_on_one_scale(self) -> Self:
        # An absolute margin is of the longest answer, which nobody knows before the last item: a sequence that stops
        # for a PASS would compare shares of max_tokens with it, and find almost every drop small.
        for name, rule in self.metrics.items():
            absolute = rule.gated and rule.relative is None and name.rpartition(".")[2] == GEN_LEN
            if absolute and self.early_stop == "both":
                raise ValueError(
                    f"{name} has an absolute margin, which is a share of the longest answer and not known before the "
                    "last item, so early_stop: both cannot pass it; give a relative margin, or early_stop: regressed"
                )
        return self

    def changed(self, **values: Any) -> GateSpec:
        """A copy with some values changed; `UsageError` when the rules do not allow them together."""
        try:
            return GateSpec.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            said = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
            raise UsageError(f"these rules do not go together: {said}") from None

    @classmethod
    def for_metrics(cls, names: Sequence[str], max_drop: float = DEFAULT_MAX_DROP, **other: Any) -> GateSpec:
        """A spec that gates exactly `names`, each by the same absolute margin."""
        rules: Mapping[str, MetricRule] = {name: MetricRule(max_drop=max_drop) for name in names}
        return cls(metrics=dict(rules), **other)

    @property
    def gated(self) -> tuple[str, ...]:
        """Names of the metrics that decide, in the recipe's order."""
        return tuple(name for name, rule in self.metrics.items() if rule.gated)
