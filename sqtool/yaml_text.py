"""YAML text to plain values, with the line of every key and nothing that could run code or fill the memory.

Only the node graph of ruamel.yaml is used; the values are built here from the core types (null, bool, int, float, str,
list, mapping). Explicit tags, merge keys, keys that are no text, repeated keys, recursive aliases, a file that is too
large and an alias bomb are problems, each with its line.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqtool.errors import Problem

MAX_BYTES = 256 * 1024
MAX_NODES = 20_000
"""Values after aliases are expanded. A recipe has some dozens."""
MAX_DEPTH = 40
MAX_DIGITS = 60
"""Characters of a number; Python itself refuses to print an integer of thousands of digits."""
REPAIR = "check quotes, colons and indentation there; a text with special characters needs quotes"

Path = tuple[str | int, ...]
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
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


def too_large() -> Problem:
    """What is said of a file with more than MAX_BYTES; the one problem that has no line."""
    return Problem("recipe", 0, f"larger than {MAX_BYTES // 1024} KiB, which no recipe is", "is it a data file?")


class _TooMuchError(Exception):
    """The document expands to more than a recipe can be; `line` is where that was noticed."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str) -> Document:
    """Read one YAML document. Never raises for bad input: the problems are in the result."""
    document = Document()
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        document.problems.append(too_large())
        return document
    node = _compose(text, document)
    if document.problems:
        return document
    if node is None:
        document.value = {}
        document.lines[()] = 1  # what is missing from an empty file is missing on its first line
        return document
    try:
        document.value = _Builder(document).build(node, (), 0)
    except _TooMuchError as error:
        document.problems.append(Problem("recipe", error.line, str(error), "write the values out"))
    return document


def _compose(text: str, document: Document) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        with warnings.catch_warnings():
            # An anchor that is given twice is legal YAML; the warning would go to the terminal with the text in it.
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            # Events cost no recursion, so what is too deep or too much ends here, before anything is built of it.
            _measure(YAML(typ="safe", pure=True).parse(text))
            return YAML(typ="safe", pure=True).compose(text)
    except _TooMuchError as error:
        document.problems.append(Problem("recipe", error.line, str(error), "write it flat and short"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem("recipe", line, f"not YAML: {what or 'cannot be read'}", REPAIR))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        message = f"not YAML: the character U+{code:04X} is not allowed"
        document.problems.append(Problem("recipe", line, message, "delete it, or write it as an escape in quotes"))
    except (YAMLError, ValueError, AssertionError, LookupError, AttributeError, TypeError) as error:
        # Broken directives and escapes end in errors of Python's own inside the parser.
        what = " ".join(str(error).split()) or type(error).__name__
        document.problems.append(Problem("recipe", 1, f"not YAML: {what}", REPAIR))
    return None


def _measure(events: Iterable[Any]) -> None:
    """`_TooMuchError` for a document that nests too deeply or holds too much, aliases not yet followed."""
    depth = 0
    for count, event in enumerate(events, 1):
        kind = type(event).__name__
        depth += kind.endswith("StartEvent")
        depth -= kind.endswith("EndEvent")
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if depth > MAX_DEPTH + 2:  # stream and document
            raise _TooMuchError(f"nested deeper than {MAX_DEPTH} levels", line)
        if count > MAX_NODES:
            raise _TooMuchError(f"holds more than {MAX_NODES} values", line)


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0
        self.open: set[int] = set()

    def build(self, node: Any, path: Path, line: int) -> Any:
        """The plain value of `node`; `line` is that of the key that leads to it (its own for list entries)."""
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooMuchError(f"expands to more than {MAX_NODES} values (aliases repeated too often)", line or 1)
        if len(path) > MAX_DEPTH:
            raise _TooMuchError(f"nested deeper than {MAX_DEPTH} levels", line or 1)
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
            if _UNWRITABLE.search(key):
                self.problem(path, line, "has a key with a NUL or half a surrogate pair")
                continue
            if key in value:
                first = self.document.lines.get((*path, key), 0)
                self.problem((*path, key), line, f"is given twice (first on line {first})")
                continue
            value[key] = self.build(value_node, (*path, key), line)
        return value

    def scalar(self, text: str, kind: str, path: Path, line: int) -> Any:
        try:
            if kind in ("int", "float") and len(text) > MAX_DIGITS:
                raise ValueError(text)
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
            self.problem(
                path, line, f"cannot be read as a number: {text[:MAX_DIGITS]!r}", "put it in quotes if it is a text"
            )
            return None
        if _UNWRITABLE.search(text):
            self.problem(path, line, "holds a NUL or half a surrogate pair", "no file name and no UTF-8 text can")
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
