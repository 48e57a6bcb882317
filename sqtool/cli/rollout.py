"""`sqtool rollout`: what production's log says about each arm, and whether the candidate does harm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqtool.cli.options import Settings, common, examples
from sqtool.errors import EXIT_INCONCLUSIVE, EXIT_REFUSED

if TYPE_CHECKING:
    from sqtool.cli.terminal import Terminal
    from sqtool.rollout import Rollout, Rules

MEASURES = (
    *(("correction", "corrected by the user"), ("acceptance", "accepted by the user"), ("retry", "retried")),
    *(("cancellation", "cancelled"), ("failure", "failed")),
)
LATENCIES = (("ttft_ms", "TTFT, ms"), ("e2e_ms", "end to end, ms"))
AMOUNTS = (("prompt_tokens", "prompt tokens"), ("output_tokens", "output tokens"))


@click.command(
    "rollout",
    epilog=examples(
        "sqtool rollout log.jsonl",
        "sqtool rollout monday.jsonl.gz tuesday.jsonl --baseline bf16 --by kind",
        "sqtool rollout gateway.jsonl --field arm=metadata.deployment --slo e2e_ms=4000",
        "zcat log.jsonl.gz | sqtool rollout - --margin correction=0.01 --json",
        "sqtool rollout log.jsonl --rules rollout.yaml --require-decision    for CI",
        "sqtool schema --rollout                                             what a line may say",
    ),
)
@click.argument("logs", nargs=-1, required=True, metavar="LOG...")
@click.option(
    "--baseline", default="baseline", show_default=True, metavar="ARM", help="Arm that the others are held to."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["auto", "sqtool", "gateway"]),
    default="auto",
    show_default=True,
    help="sqtool's own, or OpenAI-style gateway logs (LiteLLM's among them).",
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="NAME=PATH",
    help="Where a field is in a line: arm=metadata.variant. May be repeated.",
)
@click.option(
    "--absent",
    multiple=True,
    metavar="FLAG=false",
    help="For logs of events: a request without this flag (corrected, ...) counts as no. May be repeated.",
)
@click.option("--by", type=click.Choice(["kind"]), help="The table for each kind as well.")
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(path_type=Path),
    help="YAML file with alpha, margins, slo, window_minutes, candidates.",
)
@click.option(
    "--margin",
    "margins",
    multiple=True,
    metavar="NAME=SHARE",
    help="How much worse a rate may be: correction=0.01, or retry=off. May be repeated.",
)
@click.option(
    "--slo",
    "slos",
    multiple=True,
    metavar="NAME=MS",
    help="Judge how often e2e_ms or ttft_ms exceeds this. Repeatable.",
)
@click.option("--alpha", type=float, help="Chance of a false HARM, however often one looks.  [default: 0.05]")
@click.option("--window", type=float, metavar="MINUTES", help="How long a user or session is judged.  [default: 30]")
@click.option("--price-per-hour", type=click.FloatRange(min=0), help="Of a device; turns device_seconds into money.")
@click.option("--sort", is_flag=True, help="Order requests by time; holds all of them in memory.")
@click.option("--require-decision", is_flag=True, help="Exit with 3 while an arm is neither HARM nor NO_HARM.")
@common
def command(
    settings: Settings,
    logs: tuple[str, ...],
    baseline: str,
    format_: str,
    fields: tuple[str, ...],
    absent: tuple[str, ...],
    by: str | None,
    rules_file: Path | None,
    margins: tuple[str, ...],
    slos: tuple[str, ...],
    alpha: float | None,
    window: float | None,
    price_per_hour: float | None,
    sort: bool,
    require_decision: bool,
) -> int:
    """Read LOG (JSON Lines, also gzip; - is standard input): requests, retries, cancellations, corrections,
    acceptance, latency, tokens and cost of each arm, and a verdict on each candidate against the baseline.

    The verdict is valid at any time: read it as often as you like while the rollout runs.

    Exit code 0 no harm so far, 1 harm is shown, 3 undecided (with --require-decision), 2 usage.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.rollout import read_rollout, with_options
    from sqtool.rollout.formats import parse_absent, parse_mapping

    if logs.count("-") > 1:
        raise click.UsageError("standard input can be read once only")
    rules = with_options(_rules(rules_file), alpha=alpha, window=window, margins=margins, slos=slos)
    with Terminal(settings) as terminal:
        result = read_rollout(
            logs,
            rules,
            baseline=baseline,
            format=format_,  # type: ignore[arg-type]  # click checked it
            mapping=parse_mapping(fields),
            absent=parse_absent(absent),
            by_kind=by == "kind",
            price_per_hour=price_per_hour,
            sort=sort,
            progress=terminal.progress,
        )
        if settings.json:
            terminal.json(result.to_dict())
        show(terminal, result)
    if result.outcome == "HARM":
        return EXIT_REFUSED
    return EXIT_INCONCLUSIVE if require_decision and result.outcome == "KEEP_WATCHING" else 0


def _rules(path: Path | None) -> Rules:
    from sqtool.errors import DataError
    from sqtool.rollout import Rules, read_rules
    from sqtool.yaml_text import parse

    if path is None:
        return Rules()
    try:
        document = parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(path, "not UTF-8 text") from None
    except OSError as error:
        raise DataError(path, f"cannot read the rules: {error.strerror or error}") from None
    if document.problems:
        problem = document.problems[0]
        raise DataError(path, problem.message, line=problem.line)
    return read_rules(document.value, str(path), document.line)


def show(terminal: Terminal, result: Rollout) -> None:
    """The table, that of each kind, the verdicts and what to know when reading them."""
    from sqtool.hygiene import one_line

    terminal.table(*_table(result.table, result.cost_unit), f"{result.source.lines} requests, intervals of 95 %")
    for kind, arms in result.kinds.items():
        terminal.table(*_table(arms, result.cost_unit), f"kind: {kind}")
    unit = "users or sessions" if result.unit == "cluster" else "requests"
    for verdict in result.verdicts:
        rows = tuple(_verdict_row(v.to_dict(), v.metric.name) for v in verdict.metrics)
        heads = ("metric", result.baseline, verdict.arm, "change", "interval", "margin", "matched", "outcome", "why")
        terminal.table(heads, rows, f"{verdict.arm} against {result.baseline}, by {unit}, valid at any time")
    for verdict in result.verdicts:
        terminal.say(f"{verdict.outcome}: {verdict.arm}")
    for note in result.notes:
        terminal.say(f"note: {one_line(note)}")


def _table(arms: dict[str, dict[str, Any]], unit: str | None) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    from sqtool.report.numbers import milliseconds, percent, value

    rows = [("requests", *(str(cell["requests"]) for cell in arms.values()))]

    def add(label: str, measures: list[dict[str, Any]], form: Any) -> None:
        if any("value" in measure for measure in measures):
            rows.append((label, *(_cell(measure, form) for measure in measures)))

    for name, label in MEASURES:
        add(label, [cell[name] for cell in arms.values()], percent)
    for name, label in LATENCIES:
        for p in next(iter(arms.values()))[name]:
            add(f"{label}, {p}", [cell[name][p] for cell in arms.values()], milliseconds)
    for name, label in AMOUNTS:
        add(label, [cell[name] for cell in arms.values()], value)
    cost = [cell["cost_per_accepted_answer"] for cell in arms.values()]
    words = {"device_seconds": ", device seconds", "price": ", price", "currency": ", price"}
    if any("value" in measure for measure in cost):
        add(f"cost per accepted answer{words.get(unit or '', '')}", cost, value)
    else:
        rows.append(("cost per accepted answer", *(f"- ({measure['missing']})" for measure in cost)))
    return ("", *arms), tuple(rows)


def _cell(measure: dict[str, Any], form: Any) -> str:
    if "value" not in measure:
        return "-"
    text: str = form(measure["value"])
    if measure["ci"] is None:
        return f"{text} (one user)"
    low, high = (form(bound).removesuffix(" %") for bound in measure["ci"])
    return f"{text} ({low} to {high})"


def _verdict_row(verdict: dict[str, Any], name: str) -> tuple[str, ...]:
    from sqtool.report.numbers import percent, signed_points

    limit = verdict["limit_ms"]
    label = name if limit is None else f"{name.removeprefix('slo.')} > {limit:g}"
    rates = [percent(verdict[side]) if verdict[side] is not None else "-" for side in ("baseline", "candidate")]
    change = signed_points(verdict["change"]) if verdict["change"] is not None else "-"
    low, high = (signed_points(bound) for bound in verdict["interval"])
    margin = f"{100 * verdict['margin']:.2f}"
    return (
        label,
        *rates,
        change,
        f"{low} to {high}",
        margin,
        str(verdict["matched"]),
        verdict["outcome"],
        verdict["reason"],
    )
