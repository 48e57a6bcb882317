"""What is judged, and by which margins: the rules of a rollout, as a YAML file or as options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PrivateAttr, ValidationError

from sqtool.errors import DataError, UsageError, did_you_mean
from sqtool.rollout.record import Record
from sqtool.spec import Spec

Rate = Literal["correction", "acceptance", "retry", "cancellation", "failure"]
Latency = Literal["ttft_ms", "e2e_ms"]
Margin = Annotated[float, Field(gt=0, lt=1)]
RATES: dict[Rate, str] = {
    "correction": "corrected",
    "acceptance": "accepted",
    "retry": "retried",
    "cancellation": "cancelled",
    "failure": "failed",
}
"""Each rate and the field of the log that it counts."""
DEFAULT_MARGIN = 0.02
Event = Callable[[Record], bool | None]


def _every_rate() -> dict[Rate, float]:
    return dict.fromkeys(RATES, DEFAULT_MARGIN)


class Slo(Spec):
    """A latency that requests should stay within, and how much more often the candidate may miss it."""

    limit: Annotated[float, Field(gt=0, description="Milliseconds.")]
    margin: Margin = DEFAULT_MARGIN


class Rules(Spec):
    """The rules. Margins are absolute: 0.02 is two points more corrections, or two points fewer acceptances."""

    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    margins: Annotated[dict[Rate, Margin], Field(description="Rates that are judged. Default: all, 0.02 each.")] = (
        Field(default_factory=_every_rate)
    )
    slo: dict[Latency, Slo] = Field(default_factory=dict)
    window_minutes: Annotated[float, Field(gt=0, description="How long a user or session is counted.")] = 30.0
    candidates: Annotated[int | None, Field(ge=1, description="Candidate arms that will be tried in all.")] = None
    _named: frozenset[Rate] | None = PrivateAttr(default=None)

    @property
    def named(self) -> frozenset[Rate]:
        """The rates whose margins somebody wrote, in a file or as options; the others are judged by default."""
        if self._named is not None:
            return self._named
        return frozenset(self.margins if "margins" in self.model_fields_set else ())


@dataclass(frozen=True)
class Metric:
    """A judged rate. `bad` says whether the request had the bad event (None: not known); `good` rates are shown as 1
    minus it. A `named` metric is one that the user asked for: without data it is undecided instead of left out."""

    name: str
    margin: float
    bad: Event
    good: bool = False
    named: bool = False
    limit: float | None = None


def metrics_of(rules: Rules) -> tuple[Metric, ...]:
    """What `rules` judge, in their order."""
    found = [
        Metric(name, margin, _rate(name), name == "acceptance", name in rules.named)
        for name, margin in rules.margins.items()
    ]
    found += [
        Metric(f"slo.{field}", slo.margin, _slo(field, slo.limit), named=True, limit=slo.limit)
        for field, slo in rules.slo.items()
    ]
    if not found:
        raise UsageError("nothing is judged: every margin is off and there is no SLO", remedy="Leave one margin on.")
    return tuple(found)


def _rate(name: Rate) -> Event:
    field = RATES[name]
    if name == "acceptance":

        def not_accepted(record: Record) -> bool | None:
            return None if record.accepted is None else not record.accepted

        return not_accepted

    def happened(record: Record) -> bool | None:
        value: bool | None = getattr(record, field)
        return value

    return happened


def _slo(field: Latency, limit: float) -> Event:
    """Whether the SLO was missed. A failed request missed it. A request that was cancelled before the limit says
    nothing: leaving it in as fast would reward the arm whose users give up early."""

    def missed(record: Record) -> bool | None:
        if record.failed:
            return True
        value: float | None = getattr(record, field)
        waited = value if value is not None else (record.e2e_ms if record.cancelled else None)
        if waited is None:
            return None
        if waited > limit:
            return True
        return None if record.cancelled and (field == "e2e_ms" or value is None) else False

    return missed


def read_rules(value: Any, path: str, line_of: Callable[[tuple[str | int, ...]], int]) -> Rules:
    """The rules in a parsed YAML file; `DataError` with line, field and the nearest known key."""
    if not isinstance(value, dict):
        raise DataError(path, "expected keys and values", remedy=f"Keys: {', '.join(Rules.model_fields)}.")
    try:
        return Rules.model_validate(value)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        place = tuple(part for part in entry["loc"] if part != "[key]")
        field = ".".join(str(part) for part in place)
        message, remedy = str(entry["msg"]), ""
        if entry["type"] in ("extra_forbidden", "literal_error"):
            known = list(Slo.model_fields) if len(place) == 3 else list(Rules.model_fields)
            known = _children(str(place[0])) if len(place) == 2 else known
            message, remedy = "unknown key", did_you_mean(str(place[-1]), known)
        raise DataError(path, message, line=line_of(place), field=field, remedy=remedy) from None


def _children(name: str) -> list[str]:
    return {"margins": list(RATES), "slo": list(get_args(Latency))}.get(name, [])


def with_options(
    rules: Rules,
    *,
    alpha: float | None = None,
    window: float | None = None,
    margins: Sequence[str] = (),
    slos: Sequence[str] = (),
) -> Rules:
    """`rules` with the command line's options over them; `UsageError` for what cannot be.

    `margins` are `NAME=SHARE` or `NAME=off`, with `slo.e2e_ms` for an SLO's; `slos` are `e2e_ms=MILLISECONDS`.
    """
    data: dict[str, Any] = rules.model_dump(exclude_unset=True)
    named: set[str] = set(rules.named)
    if alpha is not None:
        data["alpha"] = alpha
    if window is not None:
        data["window_minutes"] = window
    for name, text in _pairs("--slo", slos, get_args(Latency)):
        data.setdefault("slo", {}).setdefault(name, {})["limit"] = _number(f"--slo {name}={text}", text)
    known = (*RATES, *(f"slo.{name}" for name in data.get("slo", {})))
    for name, text in _pairs("--margin", margins, known):
        if name.startswith("slo."):
            data["slo"][name.removeprefix("slo.")]["margin"] = _number(f"--margin {name}={text}", text)
            continue
        data["margins"] = {**data.get("margins", rules.margins)}
        if text == "off":
            data["margins"].pop(name, None)
            named.discard(name)
        else:
            named.add(name)
            data["margins"][name] = _number(f"--margin {name}={text}", text)
    try:
        made = Rules.model_validate(data)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in entry["loc"])
        raise UsageError(f"{field}: {entry['msg']}, found {entry['input']}") from None
    # The margins hold the defaults as well by now, which nobody asked for.
    made._named = frozenset(name for name in made.margins if name in named)
    return made


def _pairs(option: str, texts: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals:
            raise UsageError(f"{option} {text}: expected NAME=NUMBER", remedy=f"For example {option} {known[-1]}=0.02")
        if name not in known:
            raise UsageError(f"{option} {text}: unknown name {name!r}", remedy=did_you_mean(name, list(known)))
        pairs.append((name, number))
    return pairs


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{what}: {text!r} is no number") from None


def rules_json(rules: Rules) -> Mapping[str, Any]:
    """The rules as they stand in the JSON result."""
    return rules.model_dump(mode="json")
