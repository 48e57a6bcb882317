"""Changing one value somewhere in a JSON value."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=8), st.just("x" * 9000),
    st.sampled_from(("\x1b[2J", "\u202e", "a\nHARM: b", "</script>", "../x", "\x00", "", -1, 2, 1e15, 1e308, {}, [])),
    st.sampled_from(([[]], {"a": {"b": []}}, "\u00b2", "9" * 5000, "1e999", "0001-01-01T00:00:00+23:59", [1, "a"])),
)  # fmt: skip
RAW = (
    b"", b"null", b"[]", b"{", b"}", b'"x"', b"NaN", b"\xff\xfe", b"\x00\x00", b'{"a": "\\ud800"}', b"[" * 4000,
    b'{"a":' * 4000, b"1" * 9000, b'{"a": 1e999}', b"\xef\xbb\xbf{}", b"\xc3(", b"-", b"\t\t", b"\r", b"[" * 200_000,
)  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value in the tree."""
    found, stack = [], [tree]
    while stack:
        part = stack.pop()
        for key in list(part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()):
            found.append((part, key))
            stack.append(part[key])
    return found


def change(draw: Any, tree: Any) -> None:
    """Replace, remove or rename one value of the tree, in place."""
    all_places = places(tree)
    if not all_places:
        return
    holder, key = draw(st.sampled_from(range(len(all_places))).map(all_places.__getitem__))
    kind = draw(st.sampled_from(("value", "value", "delete", "rename")))
    if kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(("", "x", str(key) + "x", "../x", "a\nb", "x" * 300, "\x1b[2J")))] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(draw(ODD))


def damaged(draw: Any, data: bytes) -> bytes:
    """The bytes cut off, with something put in, or replaced by something else."""
    at = draw(st.integers(0, len(data)))
    kind = draw(st.sampled_from(("cut", "insert", "flip", "raw")))
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + bytes(draw(st.sampled_from(RAW))) + data[at:]
    if kind == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    return bytes(draw(st.sampled_from(RAW)))
