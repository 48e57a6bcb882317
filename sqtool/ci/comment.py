"""A short Markdown summary, for a comment on a pull request or a job's page. What models said in it is hostile text."""

from __future__ import annotations

import re
from typing import Any

from sqtool.ci.run import CiRun
from sqtool.report import Table
from sqtool.report.facts import WorseItem
from sqtool.report.markdown import Raw, draw, inline
from sqtool.report.verdict import HEADERS, worse_item

TEMPLATE = "comment.md.j2"
MAX_ITEMS = 3
MAX_ROWS = 30
MAX_LINES = 8
MAX_CHARS = 400
"""With these a comment stays far below GitHub's 65,536 characters, however much a run has to say."""
_NOT_FOR_MARKERS = re.compile(r"[^A-Za-z0-9._]+")
_REFERENCE = re.compile(r"\\([@#])")
WORD_JOINER = "\u2060"


def marker(name: str) -> str:
    """A comment that nobody sees and a CI job can find: it updates the comment that begins with it."""
    return f"<!-- sqtool:{_NOT_FOR_MARKERS.sub('-', name)} -->"


def comment(run: CiRun, *, marked: bool = True) -> str:
    """The summary; `marked` puts the hidden marker in front."""
    facts = run.facts
    rows = [judged.row for judged in run.judged if judged.effect != "not judged"]
    left = len(rows) - MAX_ROWS
    notes = [f"{left} more rows are in the report."] if left > 0 else []
    unjudged = sum(judged.effect == "not judged" for judged in run.judged)
    if unjudged:
        notes.append(f"{unjudged} slices have too few items to be judged.")
    return draw(
        TEMPLATE,
        package="sqtool.ci",
        text=_text,
        marker=Raw(marker(run.name)) if marked else None,
        facts=facts,
        why=_cut((*_why(run), *facts.caveats)),
        remedy=_cut((facts.remedy,))[0] if facts.remedy else "",
        stopped_in="" if run.gate_decided else run.stopped_in,
        table=Table(HEADERS, tuple(rows[:MAX_ROWS]), tuple(notes)) if rows else None,
        worse=_worse(run),
        repeat=Raw("\n".join(run.repeat)),
    )


def _why(run: CiRun) -> list[str]:
    """The table has the figures of a verdict, so its metrics' names are enough here."""
    refused = [judged.title for judged in run.judged if judged.effect == "refused"]
    differ = [d for d in run.verdict.get("differences") or () if not d.get("allowed")]
    if run.gate_decided and refused and not differ:
        return [f"{run.verdict.get('outcome')}: {', '.join(refused)}"]
    return run.facts.why


def _worse(run: CiRun) -> list[WorseItem]:
    """The worst items of what blocks (of everything, if nothing does): each metric's first, then the second ones."""
    metrics = [judged for judged in run.judged if judged.effect == "refused" and judged.worst] or run.judged
    found: dict[str, WorseItem] = {}
    for rank in range(MAX_ITEMS):
        for judged in metrics:
            for raw in judged.worst[rank : rank + 1]:
                item = worse_item(judged.title, raw)
                found.setdefault(item.id, item)
    return list(found.values())[:MAX_ITEMS]


def _text(value: Any) -> str:
    """Escaped for Markdown. GitHub looks for mentions and issue numbers in the text that it has rendered, where a
    backslash is gone, so a character without width keeps `@name` and `#1` from being any."""
    escaped = inline(value)
    return escaped if isinstance(value, Raw) else _REFERENCE.sub(rf"\\\1{WORD_JOINER}", escaped)


def _cut(lines: tuple[str, ...]) -> list[str]:
    short = [line if len(line) <= MAX_CHARS else line[:MAX_CHARS] + " ..." for line in lines]
    return short if len(short) <= MAX_LINES else [*short[: MAX_LINES - 1], "... and more in the report"]
