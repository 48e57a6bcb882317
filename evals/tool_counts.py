"""The same requests with 1, 2, 4, 8, 16 tools on offer: where does a model begin to lose the right one?

Made from any file of tool-call items: the tools that an item needs stay, and others of the same file are added or left
out. Nothing is random: a hash of the item's id chooses, and the tools of a smaller count are among those of a larger
one, so that two counts differ by the added tools alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evals.items import tools_problem
from evals.rows import Row, Rows
from sqtool.errors import DataError
from sqtool.files import sha256_text


def sweep(rows: Rows, counts: Sequence[int], base_items: int | None) -> Rows:
    """Rows of `rows` that expect calls of one and the same tool, each once with every count of tools, all in one
    cluster; `base_items` of them (all by default), evenly spread."""

    def bases() -> list[tuple[int, Row]]:
        found = [(number, row) for number, row in rows.read() if _needed(row) is not None]
        if not found:
            raise DataError(rows.path, "no item expects calls of exactly one tool", field="expected.calls")
        some = len(found) if base_items is None else min(base_items, len(found))
        return [found[i * len(found) // some] for i in range(some)]

    def read() -> Iterator[tuple[int, Row]]:
        chosen = bases()
        pool = _pool(rows)
        if len(pool) < max(counts):
            raise DataError(
                rows.path, f"has {len(pool)} tools of different names, and a count of {max(counts)} is asked for"
            )
        orders = [_order(row, pool) for _, row in chosen]
        # Count by count, so that an evenly spread part of the items (`evaluate.limit`) has all counts in it.
        for count in sorted(counts):
            for (number, row), order in zip(chosen, orders, strict=True):
                yield number, _with_tools(row, order[:count], count)

    return Rows(rows.path, read, lambda: len(bases()) * len(counts), rows.by_line)


def _calls(row: Row) -> list[Any]:
    expected = row.get("expected")
    calls = expected.get("calls") or expected.get("possible_calls") if isinstance(expected, dict) else None
    return calls if isinstance(calls, list) else []


def _needed(row: Row) -> str | None:
    """The one tool that is called, where it is one and is offered."""
    names = {call.get("name") for call in _calls(row) if isinstance(call, dict)}
    offered = {tool["function"]["name"] for tool in _tools(row)}
    return str(names.pop()) if len(names) == 1 and names <= offered else None


def _tools(row: Row) -> list[Row]:
    tools = row.get("tools")
    return tools if isinstance(tools, list) and tools and tools_problem(tools) is None else []


def _pool(rows: Rows) -> dict[str, Row]:
    """Every tool of the file by its name, the first of each name."""
    found: dict[str, Row] = {}
    for _, row in rows.read():
        for tool in _tools(row):
            found.setdefault(tool["function"]["name"], tool)
    return found


def _order(row: Row, pool: dict[str, Row]) -> list[Row]:
    """The needed tool, the item's other tools, then those of the pool in an order of this item's own."""
    needed = _needed(row)
    own = sorted(_tools(row), key=lambda tool: tool["function"]["name"] != needed)
    names = {tool["function"]["name"] for tool in own}
    others = sorted(pool.keys() - names, key=lambda name: sha256_text(f"{row.get('id')}\0{name}"))
    return own + [pool[name] for name in others]


def _with_tools(row: Row, tools: Sequence[Row], count: int) -> Row:
    # By hash as well, or the needed tool would always be the first.
    shown = sorted(tools, key=lambda tool: sha256_text(f"{row.get('id')}\0at\0{tool['function']['name']}"))
    fields = row.get("fields") or {}
    return {
        **row,
        "id": f"{row.get('id')}-tools{count}",
        "cluster": row.get("cluster") or str(row.get("id")),
        "tools": shown,
        "fields": {**fields, "n_tools": count},
    }
