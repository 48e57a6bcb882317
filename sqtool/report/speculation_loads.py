"""The arms at one load, as tables. Every figure that has an interval is shown with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqtool.advise.measured import CONTROL, E2E, Gain, Measured, number, pair
from sqtool.report.numbers import milliseconds, percent, value

if TYPE_CHECKING:
    from sqtool.report.facts import Table

ARMS = {
    "baseline": "baseline",
    "quantized": "quantized only",
    "speculative": "speculation only",
    "both": "both",
    CONTROL: "baseline again (A/A)",
}
NONE = "-"
MEASURES = {
    "ttft_p50": "TTFT p50",
    "tpot_p50": "TPOT p50",
    "itl_p50": "ITL p50",
    "e2e_p50": "end to end p50",
    "e2e_p95": "end to end p95",
    "e2e_p99": "end to end p99",
    "ttft_p95": "TTFT p95",
    "tpot_p95": "TPOT p95",
    "cost_per_accepted_answer": "cost per accepted answer",
    "output_tokens_per_s": "tokens/s",
    "goodput": "goodput",
}


def arm_name(name: str) -> str:
    """An arm as the report calls it."""
    return ARMS.get(name, name)


def load_words(load: str) -> str:
    """`c16` as `16 requests at once`."""
    number_part = load[1:]
    if load.startswith("c") and number_part.isdigit():
        return f"{number_part} request{'s' if number_part != '1' else ''} at once"
    if load.startswith("r") and number_part.replace(".", "", 1).isdigit():
        return f"{number_part} requests/s, at random times"
    return "at the recorded times" if load == "trace" else load


def names(measured: Measured) -> list[str]:
    """All arms in the report's order: the four, further ones, the A/A arm."""
    every = list(measured.report.get("arms", {}))
    first = [name for name in ARMS if name in every and name != CONTROL]
    others = [name for name in every if name not in ARMS]
    return [*first, *others, *([CONTROL] if CONTROL in every else [])]


def load_tables(measured: Measured, load: str) -> list[tuple[str, Table]]:
    """Titles and tables of one load; a table without a row is left out."""
    tables = (
        ("Latency", latency_table(measured, load)),
        ("Gain, cost and answers", worth_table(measured, load)),
        ("Acceptance", acceptance_table(measured, load)),
        ("Acceptance by kind", kinds_table(measured, load)),
        ("Acceptance, quantized target minus full target", change_table(measured, load)),
        ("Whether the gains multiply", interaction_table(measured, load)),
    )
    return [(title, table) for title, table in tables if table.rows]


def latency_table(measured: Measured, load: str) -> Table:
    """Percentiles of the client's times in milliseconds, throughput and failures."""
    from sqtool.report.facts import Table

    rows = []
    for arm in names(measured):
        at = measured.at(arm, load)
        if not at:
            continue
        rows.append(
            (
                arm_name(arm),
                _several(measured, arm, load, "ttft_ms"),
                _several(measured, arm, load, "tpot_ms"),
                *(_with_interval(measured, arm, load, p) for p in ("p50", "p95", "p99")),
                value(number(at.get("output_tokens_per_s")), 4),
                _goodput(at.get("goodput")),
                str((at.get("failures") or {}).get("count", 0)),
            )
        )
    whole = tuple(f"end to end {p} ms [interval]" for p in ("p50", "p95", "p99"))
    headers = ("arm", "TTFT p50/p95/p99 ms", "TPOT p50/p95/p99 ms", *whole, "tokens/s", "inside the SLO", "failed")
    return _without_empty(Table(headers, tuple(rows)))


def worth_table(measured: Measured, load: str) -> Table:
    """Gain over the baseline, cost per accepted answer, accepted answers, same answers."""
    from sqtool.report.facts import Table

    rows = []
    for arm in names(measured):
        at = measured.at(arm, load)
        if not at:
            continue
        gain = measured.noise(load) if arm == CONTROL else measured.gain(arm, load)
        accepted = at.get("accepted") or {}
        rows.append(
            (
                arm_name(arm),
                _gain_text(gain),
                _gain_text(None if arm == CONTROL else measured.over_plain(arm, load)),
                cost_text(measured, arm, load),
                f"{accepted['n']}/{accepted['of']}" if accepted.get("of") else NONE,
                same_answers(measured, arm),
            )
        )
    notes = ["Gain: how many times faster the median request is than the baseline's, paired by request; 1 is no gain."]
    floor = measured.floor(load)
    if measured.noise(load) is not None:
        notes.append(f"The baseline against itself (A/A) shows gains up to {floor:.2f}: less than that says nothing.")
    notes.append("Same answers: greedy answers equal to those of the arm named; the A/A arm is the yardstick.")
    headers = (
        "arm",
        f"gain, {MEASURES[E2E]} [interval]",
        "over the same weights without speculation",
        "cost per accepted answer [interval]",
        "accepted",
        "same answers",
    )
    return _without_empty(Table(headers, tuple(rows), tuple(notes)))


def acceptance_table(measured: Measured, load: str) -> Table:
    """What each speculating arm accepted, in all and by draft position, and what a verification costs."""
    from sqtool.report.facts import Table

    arms = [arm for arm in names(measured) if arm != CONTROL and measured.speculates(arm)]
    figures = {arm: measured.speculation(arm, load) for arm in arms}
    longest = max((len(f.get("per_position_rate") or ()) for f in figures.values()), default=0)
    rows = []
    for arm, found in figures.items():
        if not found:
            continue
        ends = found.get("ci") or {}
        places = [_rate(rate, None) for rate in found.get("per_position_rate") or ()]
        steps = measured.at(arm, load).get("steps") or {}
        rows.append(
            (
                arm_name(arm),
                str(found.get("drafts", NONE)),
                _rate(found.get("acceptance_rate"), ends.get("acceptance_rate")),
                _plain(found.get("mean_acceptance_length"), ends.get("mean_acceptance_length")),
                *places,
                *[NONE] * (longest - len(places)),
                _saved(steps),
                milliseconds(number(steps.get("plain_step_ms"))),
                _estimate(steps.get("step_ms"), 1),
                _estimate(steps.get("step_ratio"), 2),
                milliseconds(number(steps.get("draft_ms_per_token_at_most"))),
                _estimate(steps.get("marginal_ms_per_draft_token"), 2),
            )
        )
    positions = tuple(f"token {at}" for at in range(1, longest + 1))
    headers = (
        "arm", "verifications", "acceptance [interval]", "mean length [interval]", *positions, "target passes saved",
        "step ms without drafts", "step ms with drafts [interval]", "ratio [interval]", "draft ms/token at most",
        "one more draft token ms [interval]",
    )  # fmt: skip
    notes = (
        "Mean length: 1 + accepted tokens a verification. Token i: how often the i-th drafted token was accepted.",
        "A step with speculation drafts and verifies; the same weights' step without it is what it is compared with.",
    )
    return _without_empty(Table(headers, tuple(rows), notes))


def kinds_table(measured: Measured, load: str) -> Table:
    """Mean acceptance length and median latency of each kind of request, arm by arm."""
    from sqtool.report.facts import Table

    arms = [arm for arm in names(measured) if arm != CONTROL and measured.speculates(arm)]
    found = {arm: measured.at(arm, load).get("kinds") or {} for arm in arms}
    kinds = sorted({kind for per in found.values() for kind in per})
    rows = []
    for kind in kinds:
        cells = []
        for arm in arms:
            entry = (found[arm].get(kind) or {}).get("speculation") or {}
            ends = entry.get("ci") or {}
            cells.append(_rate(entry.get("acceptance_rate"), ends.get("acceptance_rate")))
            cells.append(_plain(entry.get("mean_acceptance_length"), ends.get("mean_acceptance_length")))
        if any(cell != NONE for cell in cells):
            requests = next((per[kind].get("requests") for per in found.values() if kind in per), NONE)
            rows.append((kind, str(requests), *cells))
    headers = ("kind", "requests", *(f"{arm_name(arm)}: {what}" for arm in arms for what in ("acceptance", "length")))
    return Table(headers, tuple(rows))


def change_table(measured: Measured, load: str) -> Table:
    """What quantizing the target did to acceptance: overall, per kind, per draft position."""
    from sqtool.report.facts import Table

    change = (measured.report.get("acceptance_change") or {}).get(load) or {}
    entries = {"all": change.get("overall"), **dict(sorted((change.get("kinds") or {}).items()))}
    known = {kind: entry for kind, entry in entries.items() if entry}
    longest = max((len(entry.get("per_position_rate") or ()) for entry in known.values()), default=0)
    rows = []
    for kind, entry in known.items():
        places = [_points(one) for one in entry.get("per_position_rate") or ()]
        length = entry.get("mean_acceptance_length")
        rows.append(
            (kind, _points(entry.get("acceptance_rate")), _signed(length), *places, *[NONE] * (longest - len(places)))
        )
    positions = tuple(f"token {at}, points" for at in range(1, longest + 1))
    return Table(("kind", "acceptance, points [interval]", "mean length [interval]", *positions), tuple(rows))


def interaction_table(measured: Measured, load: str) -> Table:
    """Gains over the baseline by measure, and whether both together are what the two multiply to."""
    from sqtool.report.facts import Table

    rows = []
    for measure, entry in ((measured.report.get("interaction") or {}).get(load) or {}).items():
        ratio = entry.get("ratio")
        ratio = ratio if isinstance(ratio, Mapping) else {"value": ratio}
        gains = [_gain(entry.get(name)) for name in ("quantization", "speculation", "both")]
        control = ((measured.report.get("control") or {}).get(load) or {}).get(measure)
        rows.append(
            (
                MEASURES.get(measure, measure),
                *gains,
                value(number(entry.get("product")), 3),
                _plain(ratio.get("value"), ratio.get("ci"), 2),
                _gain(control),
            )
        )
    headers = ("gain over the baseline", "quantization", "speculation", "both", "product", "both / product", "A/A")
    return _without_empty(
        Table(headers, tuple(rows), ("1 is no gain; both / product is 1 where the two do not touch.",))
    )


def same_answers(measured: Measured, arm: str) -> str:
    """Greedy agreement with the arm of the same weights without speculation, or with the baseline where there is none:
    the last entry."""
    entries = (measured.report.get("agreement") or {}).get(arm) or ()
    if not entries or not entries[-1].get("of"):
        return NONE
    last = entries[-1]
    return f"{last['identical']}/{last['of']} of {last['with']}"


def _gain_text(gain: Gain | None) -> str:
    return NONE if gain is None else f"{gain.gain:.2f} [{gain.low:.2f}, {gain.high:.2f}]"


def cost_text(measured: Measured, arm: str, load: str, *, interval: bool = True) -> str:
    """Cost per accepted answer with its interval and unit."""
    cost = measured.cost(arm, load)
    if cost is None:
        return NONE
    unit = "device-s" if cost[2] == "device_seconds" else cost[2]
    ends = "" if cost[1] is None or not interval else f" [{_money(cost[1][0])}, {_money(cost[1][1])}]"
    return f"{_money(cost[0])}{ends} {unit}".rstrip()


def _money(amount: float) -> str:
    """Three significant digits without an exponent: 0.0000989."""
    if not amount:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(amount))))
    return f"{amount:.{decimals}f}"


def _several(measured: Measured, arm: str, load: str, group: str) -> str:
    return " / ".join(milliseconds(measured.figure(arm, load, group, p)) for p in ("p50", "p95", "p99"))


def _with_interval(measured: Measured, arm: str, load: str, percentile: str) -> str:
    middle = measured.figure(arm, load, "e2e_ms", percentile)
    ends = measured.interval(arm, load, "e2e_ms", percentile)
    if middle is None or ends is None:
        return milliseconds(middle)
    return f"{milliseconds(middle)} [{milliseconds(ends[0])}, {milliseconds(ends[1])}]"


def _goodput(found: Any) -> str:
    share = number(found.get("share")) if isinstance(found, Mapping) else None
    return NONE if share is None else percent(share, 1)


def _rate(middle: Any, ends: Any) -> str:
    known, both = number(middle), pair(ends)
    if known is None:
        return NONE
    return percent(known, 1) + ("" if both is None else f" [{100 * both[0]:.1f}, {100 * both[1]:.1f}]")


def _plain(middle: Any, ends: Any, digits: int = 2) -> str:
    known, both = number(middle), pair(ends)
    if known is None:
        return NONE
    return f"{known:.{digits}f}" + ("" if both is None else f" [{both[0]:.{digits}f}, {both[1]:.{digits}f}]")


def _gain(entry: Any) -> str:
    return _plain(entry.get("gain"), entry.get("ci")) if isinstance(entry, Mapping) else NONE


def _saved(steps: Mapping[str, Any]) -> str:
    saved, share = steps.get("forward_passes_saved"), number(steps.get("share_saved"))
    if number(saved) is None:
        return NONE
    return f"{saved:,.0f}" + ("" if share is None else f" ({percent(share, 0)})")


def _estimate(entry: Any, digits: int) -> str:
    return _plain(entry.get("value"), entry.get("ci"), digits) if isinstance(entry, Mapping) else NONE


def _points(entry: Any) -> str:
    if not isinstance(entry, Mapping) or (known := number(entry.get("value"))) is None:
        return NONE
    both = pair(entry.get("ci"))
    return f"{100 * known:+.1f}" + ("" if both is None else f" [{100 * both[0]:+.1f}, {100 * both[1]:+.1f}]")


def _signed(entry: Any) -> str:
    if not isinstance(entry, Mapping) or (known := number(entry.get("value"))) is None:
        return NONE
    both = pair(entry.get("ci"))
    return f"{known:+.2f}" + ("" if both is None else f" [{both[0]:+.2f}, {both[1]:+.2f}]")


def _without_empty(table: Table) -> Table:
    """Without the columns in which no arm has a figure."""
    from sqtool.report.facts import Table

    kept = [at for at in range(len(table.headers)) if at == 0 or any(_filled(row[at]) for row in table.rows)]

    def cut(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cells[at] for at in kept)

    return Table(cut(table.headers), tuple(cut(row) for row in table.rows), table.notes)


def _filled(cell: str) -> bool:
    return bool(cell.replace("/", "").replace("-", "").strip())
