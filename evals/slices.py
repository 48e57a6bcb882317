"""Parts of the texts and of their positions that drift is shown for, with a bound on how many there are."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evals.positions import Range

EDGES = (16, 64, 256, 1024, 4096, 16384, 65536)
"""Where bins of lengths and of positions in the context begin."""
MOST_FIELDS = 12
MOST_VALUES = 12
"""Fields of the items, and values of each, that get slices of their own."""
OTHER = "(other)"
Part = tuple[list[Range], list[Range]]
"""Ranges of all positions, and of those that predict a token of an answer."""


@dataclass(frozen=True)
class Span:
    """One text's rows among all positions: from `start` up to `stop`; from `answer` on they predict the answer."""

    id: str
    kind: str
    start: int
    answer: int
    stop: int
    fields: Mapping[str, str] = field(default_factory=dict)


def _bin(value: int) -> str:
    at = bisect_right(EDGES, value)
    low = EDGES[at - 1] if at else 0
    return f"{low}-{EDGES[at] - 1}" if at < len(EDGES) else f"{low}+"


def by_kind(spans: Sequence[Span]) -> dict[str, Part]:
    """The parts of each kind."""
    return _grouped(spans, _names([span.kind for span in spans]))


def slices(spans: Sequence[Span]) -> Iterator[tuple[str, dict[str, Part]]]:
    """(dimension, its parts): `prompt_tokens` (length of the prompt), `position` (in the context), `script` and the
    items' fields. A field with one value, which says nothing, is left out; numbers with many values are cut at their
    quartiles, of other values all but the most frequent are put together."""
    yield "prompt_tokens", _grouped(spans, [_bin(span.answer - span.start + 1) for span in spans])
    yield "position", _positions(spans)
    names = Counter(name for span in spans for name in span.fields if name not in ("prompt_tokens", "position"))
    for name, _ in names.most_common(MOST_FIELDS):
        held = [span for span in spans if name in span.fields]
        values = _names([span.fields[name] for span in held])
        if len(set(values)) > 1:
            yield name, _grouped(held, values)


def tabulate(parts: Mapping[str, Part], figures: Callable[[list[Range]], dict[str, Any]]) -> dict[str, Any]:
    """{value: {"all": figures, "answers": figures}}."""
    return {value: {"all": figures(every), "answers": figures(some)} for value, (every, some) in parts.items()}


def _grouped(spans: Sequence[Span], values: Sequence[str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for span, value in sorted(zip(spans, values, strict=True), key=lambda pair: (_order(pair[1]), pair[0].start)):
        every, some = parts.setdefault(value, ([], []))
        every.append((span.start, span.stop))
        some.append((min(span.answer, span.stop), span.stop))
    return parts


def _positions(spans: Sequence[Span]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for low, high in zip((0, *EDGES), (*EDGES, None), strict=True):
        held = [span for span in spans if span.stop - span.start > low]
        if held:
            ends = [span.stop if high is None else min(span.stop, span.start + high) for span in held]
            every = [(span.start + low, end) for span, end in zip(held, ends, strict=True)]
            some = [(max(start, span.answer), end) for span, (start, end) in zip(held, every, strict=True)]
            parts[_bin(low)] = (every, [(start, end) for start, end in some if start < end])
    return parts


def _names(values: Sequence[str]) -> list[str]:
    """At most MOST_VALUES different values in place of these."""
    counts = Counter(values)
    if len(counts) <= MOST_VALUES:
        return list(values)
    numbers = [_number(value) for value in values]
    known = np.array([n for n in numbers if n is not None])
    if len(known) == len(values):
        edges = np.unique(np.quantile(known, (0.25, 0.5, 0.75), method="lower"))
        bins = np.searchsorted(edges, known, side="left")
        names = {b: f"{known[bins == b].min():g} to {known[bins == b].max():g}" for b in set(bins.tolist())}
        return [names[b] for b in bins.tolist()]
    frequent = {value for value, _ in counts.most_common(MOST_VALUES - 1)}
    return [value if value in frequent else OTHER for value in values]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _order(value: str) -> tuple[float, str]:
    """Numbers and bins by size, then texts."""
    number = _number(value.split("-")[0].split(" ")[0].rstrip("+")) if value[:1].isdigit() else None
    return (float("inf") if number is None else number, value)
