"""Files of the arms while they are being measured, and what an interrupted attempt left of them.

Until the stage is done, lines go to `<name>.jsonl.part`: the pipeline keeps such files of an attempt that failed, and a
name without the ending always means a whole file. A block's requests come first and its line in blocks.jsonl last, so
a block without a line did not happen. `arm.json` is written last of all: an arm that has it is finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.files import read_json, read_jsonl, write_json, write_text
from sqtool.speculate.client import Answer
from sqtool.speculate.schedule import Slot, Turn

PART = ".part"
REQUESTS, BLOCKS, SAMPLING, PROBE, ARM, PLAN = (
    "requests.jsonl", "blocks.jsonl", "sampling.jsonl", "probe.json", "arm.json", "plan.json",
)  # fmt: skip
QUALITY = "quality"


class ArmFiles:
    """The folder of one arm."""

    def __init__(self, out: Path, arm: str) -> None:
        self.path = out / "arms" / arm
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def finished(self) -> bool:
        """Whether everything about this arm is there."""
        return (self.path / ARM).is_file()

    def keep_block(self, answers: Sequence[Answer], row: Mapping[str, Any]) -> None:
        """Keep one block's answers and then its line."""
        self._append(REQUESTS, [answer.to_dict() for answer in answers])
        self._append(BLOCKS, [row])

    def keep_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep all sampled answers."""
        write_text(self.path / (SAMPLING + PART), _lines(rows))

    def keep_probe(self, found: Mapping[str, Any]) -> None:
        """Keep what the cancellation probe found."""
        write_json(self.path / PROBE, dict(found))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Say that the arm is finished."""
        write_json(self.path / ARM, {**record, "complete": True})

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with (self.path / (name + PART)).open("a", encoding="utf-8", newline="\n") as handle:
            handle.write(_lines(rows))
            handle.flush()
            os.fsync(handle.fileno())


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def seal(out: Path) -> None:
    """Every arm is finished: give the files their names, and the task records their folder."""
    for path in sorted((out / "arms").rglob("*" + PART)):
        target = path.with_name(path.name.removesuffix(PART))
        if path.parent.name == QUALITY:
            target = path.parent / "records" / target.name
            target.parent.mkdir(exist_ok=True)
        os.replace(path, target)


def take_over(earlier: Path | None, out: Path, key: str, turns: Sequence[Turn], *, interleaved: bool) -> set[Turn]:
    """Copy what an interrupted attempt under the same plan measured; the turns that need not be measured again.

    A finished arm is taken whole. Interleaved, slots that every arm answered are taken (of one that only some arms
    answered nothing, for the arms of a slot belong to the same minutes); otherwise an unfinished arm begins anew.
    """
    if earlier is None or not _same_plan(earlier / PLAN, key):
        return set()
    arms = sorted({turn.arm for turn in turns})
    finished = {arm for arm in arms if _whole(earlier / "arms" / arm)}
    taken = {turn for turn in turns if turn.arm in finished}
    for arm in finished:
        shutil.copytree(earlier / "arms" / arm, out / "arms" / arm, dirs_exist_ok=True)
    if interleaved:
        done = {arm: {_slot(row) for row in _rows(earlier / "arms" / arm / BLOCKS)} for arm in arms}
        everywhere = set[Slot].intersection(*done.values())
        for arm in set(arms) - finished:
            _take_slots(earlier / "arms" / arm, out / "arms" / arm, everywhere)
        taken |= {turn for turn in turns if turn.slot in everywhere}
    for arm in set(arms) - finished:
        for path in sorted((earlier / "arms" / arm / QUALITY).glob("*.jsonl" + PART)):
            (out / "arms" / arm / QUALITY).mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / "arms" / arm / QUALITY / path.name)
    return taken


def _same_plan(path: Path, key: str) -> bool:
    try:
        return bool(read_json(path).get("key") == key) if path.is_file() else False
    except (DataError, AttributeError):  # a damaged file of an attempt that failed is no reason to fail again
        return False


def _whole(folder: Path) -> bool:
    """An arm of which every part was kept; a crash while the files got their names may have left either name."""
    return (folder / ARM).is_file() and all((folder / (name + PART)).is_file() for name in (REQUESTS, BLOCKS))


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a part; its last one may be cut short."""
    part = path.with_name(path.name + PART)
    if not part.is_file():
        return []
    found: list[dict[str, Any]] = []
    with contextlib.suppress(DataError):  # what comes before a broken line counts
        found.extend(row for _, row in read_jsonl(part))
    return found


def _slot(row: Mapping[str, Any]) -> Slot:
    return Slot(int(row["round"]), str(row["load"]), int(row["block"]))


def _take_slots(earlier: Path, out: Path, slots: Collection[Slot]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in (REQUESTS, BLOCKS):
        kept = [row for row in _rows(earlier / name) if _slot(row) in slots]
        write_text(out / (name + PART), _lines(kept))
