"""Recipes: the shipped ones with keys misspelt, types swapped, values out of range and YAML damaged."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from ruamel.yaml import YAML

from benchmarks.reliability.fuzzing import ACCEPTED, Ending, escaped, refusal
from benchmarks.reliability.fuzzing.trees import places
from sqtool.errors import SqtoolError
from sqtool.recipe.model import json_schema

CHECKOUT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((CHECKOUT / "recipes").glob("*.yaml"))

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 64, 10**30, -(10**30), 10**5000, 0.5, -0.5, 1e308, 5e-324, 1e400, float("nan"),
    "", " ", "64", "true", "null", "x" * 5000, "é\u202e\u2066", "\x1b[31m", "a\x00b", "..", "../../etc/passwd",
    "/etc/passwd", "/dev/zero", "~", "~nobody/x", "a/b", "file:///etc/passwd", "https://u:p@host/x?sig=1", "{{ x }}",
    "W4A16", "awq", "tool_calls", "re:.*", "re:(((", "recipes", "artifacts/reference/target", "2026-01-31",
    [], {}, [[]], [None], [1, "a"], {"a": {"b": 1}}, {"max_drop": 2}, ["recall", "recall"], {"": 1}, [[[[[[1]]]]]],
)  # fmt: skip
DAMAGE = (
    "\t", ":", ": ", "{", "}", "[", "]", "&a ", "*a", "<<: *a", "!!python/object/apply:os.system [id]", "!!binary x",
    "!x ", "%YAML 9.9\n", "\x00", "\x07", "\x85", "\u2028", "\ufeff", "'", '"', "|", ">", "- ", "? ", "---\n", "...\n",
    "#", ",", "@", "`", "\\", "\n", " ", "\r", "0x", "1e999", ".inf", ".nan", "~", "\U0001f600", "\\ud800", "=", "!!",
)  # fmt: skip
BYTES = (b"\xff", b"\xfe\xff", b"\xc3(", b"\xed\xa0\x80", b"\x00", b"\xf4\x90\x80\x80")
_LAUGHS = "".join(f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in pairwise("abcdefghij"))
BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + _LAUGHS,
    "deep: " + "[" * 3000 + "]" * 3000 + "\n",
    "deep: " + "{a: " * 300 + "1" + "}" * 300 + "\n",
    "me: &me [*me]\n",
    "long: " + "9" * 20000 + "\n",
    "many: [" + "1," * 30000 + "1]\n",
    "big: " + "x" * 300_000 + "\n",
)  # fmt: skip


def _known_keys(schema: Any) -> list[str]:
    """Every key that has a meaning somewhere, so that a key can stand in the wrong section."""
    names: set[str] = set()
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            names.update(part.get("properties", {}))
            stack += part.values()
        elif isinstance(part, list):
            stack += part
    return sorted(names)


KEYS = _known_keys(json_schema())
TREES = [YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) for path in SHIPPED]


def _misspelt(draw: Any, key: str) -> str:
    at = draw(st.integers(0, max(0, len(key) - 1)))
    return str(
        draw(
            st.sampled_from(
                (
                    key[:at] + key[at + 1 :],
                    key[:at] + key[at : at + 1] * 2 + key[at + 1 :],
                    key[:at] + "x" + key[at:],
                    key.upper(),
                    key.replace("_", "-"),
                    key + " ",
                )
            )
        )
    )


CHANGES: tuple[Callable[[Any], Any], ...] = (
    lambda number: -number,
    lambda number: number * 10**6,
    lambda number: number + 0.5,
    lambda number: number / 1e9,
    str,
    lambda number: [number],
)


def _changed(draw: Any, number: Any) -> Any:
    """Another number; the same one where an earlier edit left an integer too large for the change."""
    try:
        return draw(st.sampled_from(CHANGES))(number)
    except (OverflowError, ValueError):
        return number


def _edit(draw: Any, tree: Any) -> None:
    """One change of the tree, in place."""
    found = places(tree)
    if not found:
        return
    holder, key = draw(st.sampled_from(range(len(found))).map(found.__getitem__))
    value = holder[key]
    kind = draw(st.sampled_from(("value", "value", "number", "key", "foreign", "delete", "move", "wrap", "add")))
    if kind == "value":
        holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    elif kind == "number":
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
        holder[key] = _changed(draw, number)
    elif kind == "key" and isinstance(holder, dict):
        holder[_misspelt(draw, str(key))] = holder.pop(key)
    elif kind == "foreign" and isinstance(holder, dict):
        holder[draw(st.sampled_from(KEYS))] = holder.pop(key)
    elif kind == "delete":
        del holder[key]
    elif kind == "move":
        other, place = draw(st.sampled_from(range(len(found))).map(found.__getitem__))
        other[place] = copy.deepcopy(value)
    elif kind == "wrap":
        holder[key] = draw(st.sampled_from(([value], {"a": value}, {str(key): value})))
    elif isinstance(holder, dict):
        holder[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(VALUES)))


def _damage(draw: Any, text: str) -> str:
    """One change of the YAML text."""
    at = draw(st.integers(0, len(text)))
    lines = text.splitlines(keepends=True) or [""]
    row = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(("insert", "insert", "cut", "end", "line", "indent", "swap", "any")))
    if draw(st.integers(0, 49)) == 0:
        kind = "bomb"
    if kind == "insert":
        return text[:at] + str(draw(st.sampled_from(DAMAGE))) + text[at:]
    if kind == "cut":
        return text[:at] + text[at + draw(st.integers(1, 12)) :]
    if kind == "end":
        return text[:at]
    if kind == "any":
        return text[:at] + str(draw(st.text(max_size=6))) + text[at:]
    if kind == "bomb":
        return str(draw(st.sampled_from(BOMBS))) + text
    if kind == "line":
        lines.insert(row, lines[draw(st.integers(0, len(lines) - 1))])
    elif kind == "indent":
        lines[row] = draw(st.sampled_from((" ", "  ", "\t", "      "))) + lines[row]
    else:
        lines[row - 1], lines[row] = lines[row], lines[row - 1]
    return "".join(lines)


def _written(tree: Any) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


@st.composite
def cases(draw: Any) -> bytes:
    """The bytes of a recipe file: one to three changes of a shipped recipe, in its tree, its text or its bytes."""
    number = draw(st.integers(0, len(SHIPPED) - 1))
    if draw(st.booleans()):
        tree = copy.deepcopy(TREES[number])
        for _ in range(draw(st.integers(1, 3))):
            _edit(draw, tree)
        try:
            text = _written(tree)
        except (ValueError, RecursionError):  # an int of 5,000 digits: Python does not write it, so a text does
            text = f"seed: {'9' * 5000}\n"
    else:
        text = SHIPPED[number].read_text(encoding="utf-8")
    if draw(st.sampled_from((True, False))) or text == SHIPPED[number].read_text(encoding="utf-8"):
        for _ in range(draw(st.integers(1, 2))):
            text = _damage(draw, text)
    data = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 19)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(BYTES)) + data[at:]
    return data


def project(folder: Path) -> Path:
    """A project folder in which shipped recipes can be planned: the reference models are linked into it."""
    (folder / "pyproject.toml").touch()
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "artifacts/reference").symlink_to(CHECKOUT / "artifacts/reference")
    return folder


def attempt(data: bytes, root: Path) -> Ending:
    """Load and plan the recipe in `data` in the project folder `root`."""
    from sqtool.pipeline import job_of, make_plan
    from sqtool.recipe import load_recipe

    path = root / "recipe.yaml"
    path.write_bytes(data)
    where = "load"
    try:
        loaded = load_recipe(path, root)
        where = "models"
        job = job_of(loaded)
        where = "plan"
        plan = make_plan(job)
    except SqtoolError as error:
        return refusal(error, where)
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        return escaped(error, where)
    for problem in plan.problems:
        ending = refusal(problem, where)
        if ending.fault:
            return ending
    return refusal(plan.problems[0], where) if plan.problems else Ending(ACCEPTED)
