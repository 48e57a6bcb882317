"""`sqtool explain`: why a run's verdict is what it is, and where to look."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from sqtool.cli.options import Settings, common, examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqtool.explain import Explanation
    from sqtool.explain.worse import Change, Example, Part

MOST_KINDS = 4
MOST_DETAIL = 200


@click.command(
    "explain",
    epilog=examples(
        "sqtool explain awq4",
        "sqtool explain artifacts/runs/rtn4-refused",
        "sqtool explain awq4 --json",
    ),
)
@click.argument("run")
@common
def command(settings: Settings, run: str) -> int:
    """Say in plain words why the verdict of RUN (a name in artifacts/runs, or a folder) is what it is: which items,
    parts of them and layers to look at, and what to try.

    Reads records and writes nothing. Exit code 0, whatever the verdict was; `sqtool gate RUN` exits by the verdict.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.explain import explain_run
    from sqtool.hygiene import clean
    from sqtool.runfolder import RunFolder

    with Terminal(settings) as terminal:
        told = explain_run(RunFolder.find(settings.here, run).path)
        if settings.json:
            terminal.json(dataclasses.asdict(told))
        for line in _lines(told):
            terminal.say(clean(line))  # what models said is in it
    return 0


def _lines(told: Explanation) -> Iterator[str]:
    from sqtool.report.facts import HEADLINES

    yield f"{HEADLINES.get(told.outcome, told.outcome.upper())}: {told.name}"
    if told.why and not (told.words and told.outcome in ("refused", "inconclusive")):
        yield from (f"  {_flat(line)}" for line in told.why)
    yield from (f"  note: {_flat(note)}" for note in told.notes)
    if told.words:
        yield from ("", "Verdict")
        yield from (f"  {_flat(line)}" for line in told.words.splitlines() if line.strip())
    if told.changes:
        yield from ("", "What got worse")
        for change in told.changes:
            yield from _change(change)
    if told.drift:
        yield from ("", "Kinds whose answers drifted most (explains; task scores decide)")
        for drift in told.drift:
            same = f"same top token {100 * drift.top1_agreement:.2f} %"
            yield f"  {_flat(drift.kind)}: mean KL {drift.kl_mean:.3g} nats, {same}"
    if told.layers:
        yield from ("", "Layers with the largest error")
        for layer in told.layers:
            yield f"  {_flat(layer['name'])}: relative error {layer['relative_error']:.3g}"
    if told.advice:
        yield from ("", "What to do")
        yield from (f"  - {_flat(line)}" for line in told.advice)


def _change(change: Change) -> Iterator[str]:
    better = f"{change.better:,} better" if change.better else "none better"
    yield f"  {_flat(change.metric)}: {change.worse:,} of {change.items:,} items got worse, {better}{_kinds(change)}"
    if not change.worse:
        return
    yield f"    {_failures(change)}"
    if change.parts:
        parts = "; ".join(_part(part) for part in change.parts)
        yield f"    fell most (exploratory: found among {change.looked_at} parts, not judged): {parts}"
    for example in change.examples:
        yield from _example(example)


def _kinds(change: Change) -> str:
    worse = [kind for kind in change.kinds if kind.worse]
    if len(worse) == 1:
        return f"; all of kind {_flat(worse[0].value)}"
    shown = ", ".join(f"{_flat(k.value)} {k.worse:,} of {k.items:,}" for k in worse[:MOST_KINDS])
    more = " and others" if len(worse) > MOST_KINDS else ""
    return f"; by kind: {shown}{more}" if worse else ""


def _failures(change: Change) -> str:
    named = [(name, count) for name, count in change.failures if name]
    if not named:
        return "the records do not say how they fail"
    (first, count), *others = named
    rest = "".join(f", {n:,} as {_flat(name)}" for name, n in others)
    return f"{count:,} of {change.worse:,} worse items now fail as {_flat(first)}{rest}"


def _part(part: Part) -> str:
    return (
        f"{_flat(part.field)}={_flat(part.value)} {100 * part.baseline:.2f} -> {100 * part.candidate:.2f} % "
        f"({part.items:,} items)"
    )


def _example(example: Example) -> Iterator[str]:
    about = ", ".join(_flat(text) for text in (example.kind, example.failure) if text)
    where = "the same text" if example.at is None else f"answers differ from character {example.at}"
    yield f"    item {_flat(example.id)}" + (f" ({about})" if about else "") + f": {where}"
    if example.detail:
        detail = _flat(example.detail)
        yield f"      detail:    {detail[:MOST_DETAIL]}" + (" ..." if len(detail) > MOST_DETAIL else "")
    yield f"      baseline:  {example.baseline!r}"
    if example.at is not None:
        yield f"      candidate: {example.candidate!r}"


def _flat(text: str) -> str:
    return " ".join(str(text).split())
