"""`sqtool advise`: what to deploy, by what a run measured and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sqtool.cli.options import Settings, common, examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqtool.advise import Advice


@click.command(
    "advise",
    epilog=examples(
        "sqtool advise awq4",
        "sqtool advise recipes/awq4.yaml",
        "sqtool advise artifacts/runs/awq4 --json | jq .loads",
    ),
)
@click.argument("run", metavar="RUN|RECIPE")
@click.option("--rules", is_flag=True, help="Also each rule with the figures that it looked at.")
@common
def command(settings: Settings, run: str, rules: bool) -> int:
    """Say what to deploy for the traffic and the loads that RUN measured: baseline, quantized, speculation or both,
    and how many draft tokens; what to try first, and what each arm costs to operate.

    RUN is a name in artifacts/runs, a folder, or a recipe that was run. Reads what is there and starts nothing.
    Speculation that is not approved, a candidate that the gate refused, and a gain whose interval includes 1 are never
    recommended. Exit code 0, whatever the advice is.
    """
    from sqtool.cli.terminal import Terminal
    from sqtool.hygiene import clean
    from sqtool.report.advice import advice_of
    from sqtool.runfolder import RunFolder

    with Terminal(settings) as terminal:
        folder = RunFolder.find(settings.here, run)
        told = advice_of(folder)
        if settings.json:
            terminal.json({"run": folder.path.name, **told.to_json()})
            return 0
        for line in _lines(told, rules=rules):
            terminal.say(clean(line))  # names of arms come from recipes
    return 0


def _lines(told: Advice, *, rules: bool) -> Iterator[str]:
    yield told.headline
    if told.loads:
        yield from ("", "By load")
        width = max(len(advice.load) for advice in told.loads)
        for advice in told.loads:
            tokens = f" (k={advice.num_speculative_tokens})" if advice.num_speculative_tokens else ""
            yield f"  {advice.load:<{width}}  {advice.deploy}{tokens}: {advice.why}"
    yield from ("", "What to try first")
    yield from (f"  {number}. {line}" for number, line in enumerate(told.first, 1))
    if told.cautions:
        yield from ("", "Take care")
        yield from (f"  - {line}" for line in told.cautions)
    yield from ("", "Arms")
    for arm in told.arms:
        yield f"  {arm.arm}: {arm.says}: {arm.reason}"
        yield f"    to operate: {arm.complexity}"
    modes = dict.fromkeys(mode for arm in told.arms for mode in arm.complexity.failure_modes)
    if modes:
        yield from ("", "What goes wrong at night, and with which arms")
    for mode in modes:
        having = [arm.arm for arm in told.arms if mode in arm.complexity.failure_modes]
        yield f"  - {mode} ({', '.join(having)})"
    if rules:
        yield from ("", "Rules, and what each looked at")
        for rule in told.rules:
            applies = {True: "applies", False: "does not apply", None: "unknown"}[rule.applies]
            yield f"  {rule.name}: {applies}. Limit: {rule.limit}."
            yield f"    {rule.says}"
            yield from (f"    {name}: {_figure(value)}" for name, value in rule.evidence.items())


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_figure(one) for one in value) + "]"
    return "not measured" if value is None else str(value)
