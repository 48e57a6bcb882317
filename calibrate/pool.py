"""The pool: JSONL files of whole conversations, each line checked.

A line is `{"id", "kind", "messages": [...], "tools": [...]}`; messages are OpenAI's and end with the assistant's
answer, tools are OpenAI tool objects. A pass over the pool keeps a few numbers a line, so that a large one fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqtool.errors import DataError
from sqtool.files import canonical_json

ROLES = ("system", "developer", "user", "assistant", "tool")
NO_KIND = "unspecified"
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One usable line of a source."""

    source: int
    line: int
    offset: int
    """Where the line starts, in bytes."""
    kind: str
    tools_called: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """All usable lines of all sources, in order."""

    paths: tuple[Path, ...]
    entries: tuple[tuple[Entry, ...], ...]
    """By source."""
    duplicates: int
    """Lines left out because an earlier one has the same messages and tools."""

    def __len__(self) -> int:
        return sum(len(entries) for entries in self.entries)

    def kinds(self) -> set[str]:
        return {entry.kind for entries in self.entries for entry in entries}

    def tools_called(self) -> set[str]:
        return {tool for entries in self.entries for entry in entries for tool in entry.tools_called}

    def read(self, entries: list[Entry]) -> list[Record]:
        """The records of `entries`, in their order."""
        records: dict[Entry, Record] = {}
        for number, path in enumerate(self.paths):
            wanted = sorted((e for e in entries if e.source == number), key=lambda e: e.offset)
            with path.open("rb") as handle:
                for entry in wanted:
                    handle.seek(entry.offset)
                    records[entry] = json.loads(handle.readline())
        return [records[entry] for entry in entries]


def read_pool(paths: list[Path]) -> Pool:
    """Check every line of every source. Raises DataError with file, line and field for the first bad one, and when a
    source has no line at all."""
    seen: set[bytes] = set()
    duplicates = 0
    sources = []
    for number, path in enumerate(paths):
        entries = []
        lines = 0
        for line, offset, record in _lines(path):
            lines += 1
            check_record(record, path, line)
            content = canonical_json({"messages": record["messages"], "tools": record.get("tools") or []})
            key = hashlib.sha256(content.encode()).digest()
            if key in seen:
                duplicates += 1
                continue
            seen.add(key)
            kind = record.get("kind") or NO_KIND
            entries.append(Entry(number, line, offset, kind, tools_called(record)))
        if not lines:
            raise DataError(path, "is empty", remedy="A calibration source is JSONL, one conversation a line.")
        sources.append(tuple(entries))
    return Pool(tuple(paths), tuple(sources), duplicates)


def _lines(path: Path) -> Iterator[tuple[int, int, Record]]:
    try:
        with path.open("rb") as handle:
            offset = 0
            for number, raw in enumerate(handle, 1):
                start, offset = offset, offset + len(raw)
                if not raw.strip():
                    continue
                yield number, start, _parse(raw, path, number)
    except FileNotFoundError:
        raise DataError(path, "no such file", remedy="Give calibrate.sources a JSONL file of conversations.") from None
    except IsADirectoryError:
        raise DataError(path, "is a folder", remedy="Give calibrate.sources a JSONL file of conversations.") from None


def _parse(raw: bytes, path: Path, number: int) -> Record:
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        raise DataError(path, f"not JSON: {error.msg}", line=number) from None
    except UnicodeDecodeError:
        raise DataError(path, "not UTF-8 text", line=number) from None
    if not isinstance(value, dict):
        raise DataError(path, f"expected a JSON object, found {type(value).__name__}", line=number)
    return value


def check_record(record: Mapping[str, Any], path: Path, line: int) -> None:
    """Raises DataError that names the field when `record` is no conversation."""

    def bad(field: str, message: str) -> DataError:
        return DataError(path, message, line=line, field=field)

    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "expected a list of messages with at least one in it")
    for place, message in enumerate(messages):
        field = f"messages[{place}]"
        if not isinstance(message, dict):
            raise bad(field, "expected an object with role and content")
        if message.get("role") not in ROLES:
            raise bad(f"{field}.role", f"expected one of {', '.join(ROLES)}, found {message.get('role')!r}")
        if not isinstance(message.get("content"), str | None):
            raise bad(f"{field}.content", "expected text")
        calls = message.get("tool_calls")
        if message.get("content") is None and not calls:
            raise bad(f"{field}.content", "is missing, and there are no tool_calls")
        for number, call in enumerate(calls or []):
            _check_call(call, f"{field}.tool_calls[{number}]", bad)
    tools = record.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise bad("tools", "expected a list of OpenAI tool objects")
    for place, tool in enumerate(tools or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad(f"tools[{place}].function.name", "expected a tool object with a named function")
    if not isinstance(record.get("kind"), str | None):
        raise bad("kind", "expected text")


def _check_call(call: Any, field: str, bad: Any) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad(f"{field}.function.name", "expected a call of a named function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # A request log keeps arguments as they went over the wire: a JSON text.
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            raise bad(f"{field}.function.arguments", "is text that is not JSON") from None
    if not isinstance(arguments, dict):
        raise bad(f"{field}.function.arguments", "expected an object")


def tools_called(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tools that the conversation's assistant calls, sorted, each once."""
    names = {call["function"]["name"] for message in record["messages"] for call in message.get("tool_calls") or []}
    return tuple(sorted(names))


def tools_offered(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tools that the conversation offers, sorted, each once."""
    return tuple(sorted({tool["function"]["name"] for tool in record.get("tools") or []}))
