"""YAML text to plain values, with the line of every key and nothing that could run code or fill the memory.

Only the node graph of ruamel.yaml is used; the values are built here from the core types (null, bool, int, float, str,
list, mapping). Explicit tags, merge keys, keys that are no text, repeated keys, recursive aliases, a file that is too
large and an alias bomb are problems, each with its line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sqtool.errors import Problem

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
"""Values after aliases are expanded. A recipe has some dozens."""
MAX_DEPTH = 40

Path = tuple[str | int, ...]
_CORE = "tag:yaml.org,2002:"


@dataclass
class Document:
    """`value` is the plain content; `lines` maps the path of each key or list entry to its 1-based line."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of `path`, or of its nearest ancestor that was written; 0 when nothing was."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 0


def dotted(path: Path) -> str:
    """`("methods", 0, "awq")` as `methods.0.awq`; the whole file is `recipe`."""
    return ".".join(str(part) for part in path) or "recipe"


class _TooMuchError(Exception):
    """The document expands to more than a recipe can be."""


def parse(text: str) -> Document:
    """Read one YAML document. Never raises for bad input: the problems are in the result."""
    document = Document()
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        document.problems.append(Problem("recipe", 0, f"larger than {MAX_BYTES // 1024} KiB, which no recipe is"))
        return document
    node = _compose(text, document)
    if document.problems:
        return document
    if node is None:
        document.value = {}
        return document
    try:
        document.value = _Builder(document).build(node, (), 0)
    except _TooMuchError as error:
        document.problems.append(Problem("recipe", 0, str(error)))
    return document


def _compose(text: str, document: Document) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem("recipe", line, f"not YAML: {what or 'cannot be read'}"))
    except (YAMLError, ValueError) as error:
        # ruamel raises a bare ReaderError for characters that YAML forbids.
        document.problems.append(Problem("recipe", 0, f"not YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        document.problems.append(Problem("recipe", 0, "nested deeper than any recipe is"))
    return None


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0
        self.open: set[int] = set()

    def build(self, node: Any, path: Path, line: int) -> Any:
        """The plain value of `node`; `line` is that of the key that leads to it (its own for list entries)."""
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooMuchError(f"expands to more than {MAX_NODES} values (aliases repeated too often)")
        if len(path) > MAX_DEPTH:
            raise _TooMuchError(f"nested deeper than {MAX_DEPTH} levels")
        here = line or node.start_mark.line + 1
        self.document.lines[path] = here
        tag = str(node.tag)
        if id(node) in self.open:
            self.problem(path, here, "refers to itself")
            return None
        self.open.add(id(node))
        try:
            if node.id == "mapping" and tag == _CORE + "map":
                return self.mapping(node, path)
            if node.id == "sequence" and tag == _CORE + "seq":
                return [
                    self.build(entry, (*path, index), entry.start_mark.line + 1)
                    for index, entry in enumerate(node.value)
                ]
            if node.id == "scalar" and tag.startswith(_CORE):
                return self.scalar(node.value, tag.removeprefix(_CORE), path, here)
        finally:
            self.open.discard(id(node))
        self.problem(path, here, f"has the tag {tag.replace(_CORE, '!!')}", "a recipe is plain data, tags are not used")
        return None

    def mapping(self, node: Any, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            tag = str(key_node.tag)
            if tag == _CORE + "merge":
                self.problem(path, line, "has a merge key (<<)", "write the keys out")
                continue
            if key_node.id != "scalar" or not tag.startswith(_CORE):
                self.problem(path, line, "has a key that is no text")
                continue
            key = str(key_node.value)
            if key in value:
                first = self.document.lines.get((*path, key), 0)
                self.problem((*path, key), line, f"is given twice (first on line {first})")
                continue
            value[key] = self.build(value_node, (*path, key), line)
        return value

    def scalar(self, text: str, kind: str, path: Path, line: int) -> Any:
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() == "true"
            if kind == "int":
                return _integer(text)
            if kind == "float":
                number = _floating(text)
                if not math.isfinite(number):
                    self.problem(path, line, f"is {text}, and only finite numbers are allowed")
                    return None
                return number
        except ValueError:
            self.problem(path, line, f"cannot be read as a number: {text!r}", "put it in quotes if it is a text")
            return None
        if kind in ("str", "timestamp"):  # a date such as `version: 2026-01-31` stays the text that was written
            return text
        self.problem(path, line, f"has the tag !!{kind}", "a recipe is plain data, tags are not used")
        return None

    def problem(self, path: Path, line: int, message: str, hint: str = "") -> None:
        self.document.problems.append(Problem(dotted(path), line, message, hint))


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    for prefix, base in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.lower().startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits)


def _floating(text: str) -> float:
    plain = text.replace("_", "").lower()
    return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
