"""What coverage is measured against: a sample of the traffic, and the evaluation's items."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.candidates import profile
from calibrate.conversation import NoAnswer, NoConversation, Record, as_record, length_bin, prompt_chars
from calibrate.features import Profile
from calibrate.render import render_cut
from calibrate.sources import read_lines
from sqtool.errors import DataError

MOST = 5000
"""Conversations of a sample that are looked at; more change a share by less than a point."""


@dataclass(frozen=True)
class Sample:
    """Conversations of one reference, and what they have."""

    records: list[tuple[str, Record]]
    """(name to show, record)."""
    profile: Profile
    unusable: int
    """Items that are no conversation, or that the chat template cannot render."""


def read_traffic(path: Path, tokenizer: Any, *, seed: int) -> Sample:
    """At most `MOST` conversations of a JSONL file, drawn evenly. Raises DataError for a bad line and an empty file."""
    rng = random.Random(f"calibrate:{seed}:match")
    kept: list[tuple[str, Record]] = []
    for seen, (name, record) in enumerate(_records(path, strict=True), 1):
        if len(kept) < MOST:
            kept.append((name, record))
        elif (place := rng.randrange(seen)) < MOST:
            kept[place] = (name, record)
    if not kept:
        raise DataError(path, "is empty", field="calibrate.match", remedy="Give it a sample of the traffic, as JSONL.")
    return _sample(kept, tokenizer)


def read_items(paths: Mapping[str, Path], tokenizer: Any) -> Sample:
    """All test items of some tasks, by the task's name. Items that are no conversation are counted and left out: other
    kinds of task are not for this package to judge."""
    kept = []
    lost = 0
    for task, path in paths.items():
        for name, record in _records(path, strict=False):
            if record:
                kept.append((f"{task}: {name}", record))
            else:
                lost += 1
    return _sample(kept, tokenizer, lost)


def _records(path: Path, *, strict: bool) -> Iterator[tuple[str, Record]]:
    for line in read_lines(path):
        name = f"line {line.number}"
        try:
            if isinstance(line.value, DataError):
                raise line.value
            record = as_record(line.value)
        except NoAnswer:
            continue
        except (NoConversation, DataError) as error:
            if not strict:
                yield name, {}
                continue
            if isinstance(error, DataError):
                raise
            raise DataError(path, str(error), line=line.number, field=error.field) from None
        yield str(record.get("id") or name), record


def _sample(records: list[tuple[str, Record]], tokenizer: Any, lost: int = 0) -> Sample:
    made, usable = [], []
    for name, record in records:
        try:
            rendered = render_cut(tokenizer, record, None)
        except ValueError:
            lost += 1
            continue
        made.append((record, rendered))
        usable.append((name, record))
    found = profile(tokenizer, made)
    for record, _ in made:
        found.strata[record.get("kind") or "", length_bin(prompt_chars(record))] += 1
    return Sample(usable, found, lost)
