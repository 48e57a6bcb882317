"""Every `sqtool ...` in the documentation is a command that exists, with options that it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from sqtool.cli import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BEFORE = re.compile(r"^(?:[-$>] +|run: +\|?|[\w-]+: +)*")
"""What may stand in front of a command: a list's dash, a prompt, a YAML key."""
END = re.compile(r"[;&|()]+$")
REDIRECTION = re.compile(r"^[<>]+&?$")


def commands(markdown: str) -> Iterator[tuple[bool, list[str]]]:
    """(whether it stands in a sentence, the arguments) of each sqtool command line in a page's code."""
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        prose = token.type not in ("fence", "code_block")
        if not prose:
            lines = token.content.replace("\\\n", " ").splitlines()
        else:
            lines = [child.content for child in token.children or () if child.type == "code_inline"]
        for line in lines:
            yield from ((prose, args) for args in in_line(BEFORE.sub("", line.strip())))


def in_line(line: str) -> Iterator[list[str]]:
    """Of a line of shell, the arguments of what calls sqtool; text that is no shell has none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return
    call: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if END.match(word):
            if call and Path(call[0]).name == "sqtool" and len(call) > 1:
                yield call[1:]
            call = []
        elif skip or REDIRECTION.match(word):
            skip = not skip
        else:
            call.append(word)


def check(args: list[str]) -> None:
    """Raises click's UsageError where the command line would be wrong; nothing runs."""
    context = click.Context(cli, info_name="sqtool")
    if args[0].startswith("-"):
        with pytest.raises(click.exceptions.Exit):
            cli.make_context("sqtool", list(args))
        return
    name, command, rest = cli.resolve_command(context, list(args))
    assert command is not None
    command.make_context(name, rest, parent=context)


FOUND = [(page.name, *found) for page in PAGES for found in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "prose", "args"), FOUND, ids=[f"{page}: {' '.join(args)}" for page, _, args in FOUND])
def test_the_command_exists_and_has_these_options(page: str, prose: bool, args: list[str]) -> None:
    try:
        check(args)
    except click.UsageError as error:
        if prose and isinstance(error, click.MissingParameter):
            return  # a sentence may name a command without what it is given
        pytest.fail(f"{page}: sqtool {shlex.join(args)}: {error.format_message()}")


def test_the_pages_do_have_commands() -> None:
    assert {page for page, _, _ in FOUND} >= {"README.md", "ci.md"}
    assert {args[0] for _, _, args in FOUND} >= {"quantize", "gate", "report", "explain"}


@pytest.mark.parametrize(
    "line",
    [
        "sqtool quantise x",
        "sqtool report x --fromat junit",
        "sqtool report x --format xml",
        "sqtool explain",
        "sqtool -z",
    ],
)
def test_the_check_can_fail(line: str) -> None:
    ((args),) = in_line(line)
    with pytest.raises(click.UsageError):
        check(args)


def test_command_lines_are_found_where_they_stand() -> None:
    text = """
`sqtool gate RUN` and `make test`

    $ sqtool plan a.yaml | less   # not this
    sqtool quantize b.yaml > out.txt && .venv/bin/sqtool report b \\
      --format md; echo sqtool

```yaml
    - run: sqtool doctor
    - x/sqtool explain b
```
"""
    assert list(commands(text)) == [
        (True, ["gate", "RUN"]),
        (False, ["plan", "a.yaml"]),
        (False, ["quantize", "b.yaml"]),
        (False, ["report", "b", "--format", "md"]),
        (False, ["doctor"]),
        (False, ["explain", "b"]),
    ]


def test_recipes_that_the_documentation_names_exist() -> None:
    named = {word for page in PAGES for word in re.findall(r"\brecipes/[\w.-]+\.yaml\b", page.read_text("utf-8"))}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_yaml_in_the_ci_guide_fits_the_action() -> None:
    """Its blocks are YAML, and what they give to the action, or take from it, the action has."""
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    action = YAML(typ="safe").load(ROOT / "action.yml")
    blocks = [t for t in MarkdownIt("commonmark").parse(page) if t.type == "fence" and t.info == "yaml"]
    assert blocks
    steps = []
    for block in blocks:
        steps += list(uses(YAML(typ="safe").load(block.content)))
    ours = [step for step in steps if "sqtool@" in step["uses"]]
    assert ours
    for step in ours:
        assert set(step["with"]) <= set(action["inputs"])
    taken = set(re.findall(r"steps\.sqtool\.outputs\.([\w-]+)", page))
    assert taken
    assert taken <= set(action["outputs"])
    table = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    assert table == set(action["inputs"]), "the table of inputs is complete"


def uses(value: object) -> Iterator[dict[str, object]]:
    """Every mapping with a `uses` in a YAML document."""
    if isinstance(value, dict):
        if "uses" in value:
            yield value
        for inner in value.values():
            yield from uses(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from uses(inner)
