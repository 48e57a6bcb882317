"""The traffic sample beside the reference model, as conversations with their answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrate.pool import Record, check_record
from sqtool.files import read_jsonl

TRAFFIC = "traffic.jsonl"


def traffic_beside(model: Path) -> Path | None:
    """`data/traffic.jsonl` beside the model's folder, where the reference model has it."""
    beside = model.resolve().parent / "data" / TRAFFIC
    return beside if beside.is_file() else None


def read_served(path: Path) -> Iterator[Record]:
    """The conversations of a JSONL file. Raises DataError with file, line and field for one that is none."""
    for line, record in read_jsonl(path):
        check_record(record, path, line)
        yield with_answer(record)


def with_answer(record: Record) -> Record:
    """The conversation with the answer that a test item expects, where there is one: answers pass the model too."""
    expected = record.get("expected") or {}
    if expected.get("text"):
        answer: dict[str, Any] = {"role": "assistant", "content": expected["text"]}
    elif expected.get("calls"):
        calls = [{"type": "function", "function": call} for call in expected["calls"]]
        answer = {"role": "assistant", "content": "", "tool_calls": calls}
    else:
        return record
    return {**record, "messages": [*record["messages"], answer]}
