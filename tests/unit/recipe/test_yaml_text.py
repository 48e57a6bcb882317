from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.yaml_text import MAX_BYTES, parse


def messages(text: str) -> list[str]:
    return [f"{p.line}: {p.field}: {p.message}" for p in parse(text).problems]


def test_core_types_and_lines() -> None:
    document = parse(
        "a: 1\nb:\n  - x\n  - {c: 2.5, d: true}\ne: null\nf: yes\ng: 2026-01-31\nh: 0x1f\ni: 1_000\nj: 1e3\n"
    )
    assert document.problems == []
    assert document.value == {
        "a": 1,
        "b": ["x", {"c": 2.5, "d": True}],
        "e": None,
        "f": "yes",
        "g": "2026-01-31",
        "h": 31,
        "i": 1000,
        "j": 1000.0,
    }
    assert document.lines[("b",)] == 2
    assert document.lines[("b", 1, "d")] == 4
    assert document.line(("b", 1, "nowhere")) == 4
    assert document.line(("nowhere",)) == 1


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_nothing_is_an_empty_mapping_or_null(text: str) -> None:
    document = parse(text)
    assert document.problems == []
    assert not document.value


def test_repeated_keys_are_errors_with_both_lines() -> None:
    assert messages("a: 1\nb: 2\na: 3\n") == ["3: a: is given twice (first on line 1)"]
    assert messages("x:\n  a: 1\n  a: 1\n") == ["3: x.a: is given twice (first on line 2)"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: !!python/object:os.system x", "1: a: has the tag !!python/object:os.system"),
        ("a: !!python/object/apply:os.system [ls]", "1: a: has the tag !!python/object/apply:os.system"),
        ("a:\n  b: !mine {c: 1}", "2: a.b: has the tag !mine"),
        ("a: !!binary aGk=", "1: a: has the tag !!binary"),
        ("a: !!set {x, y}", "1: a: has the tag !!set"),
        ("a: .nan", "1: a: is .nan, and only finite numbers are allowed"),
        ("a: -.inf", "1: a: is -.inf, and only finite numbers are allowed"),
        ("? [1, 2]\n: x", "1: recipe: has a key that is no text"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "3: c: has a merge key (<<)"),
        ("a: &x [*x]", "1: a.0: refers to itself"),
    ],
)
def test_what_a_recipe_may_not_have(text: str, expected: str) -> None:
    assert messages(text) == [expected]


def test_syntax_errors_have_a_line() -> None:
    (problem,) = parse("a: [1, 2\nb: }").problems
    assert problem.line == 2
    assert problem.message.startswith("not YAML: ")
    (problem,) = parse("a: 1\n---\nb: 2\n").problems
    assert (problem.line, "single document" in problem.message) == (2, True)
    (problem,) = parse("a: \x00").problems
    assert problem.message.startswith("not YAML: ")


def test_alias_bomb_deep_nesting_and_size() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 10)}]" for old, new in zip("abcdef", "bcdefg", strict=True)]
    (said,) = messages("\n".join(lines))
    assert said.endswith(": recipe: expands to more than 20000 values (aliases repeated too often)")
    assert int(said.partition(":")[0]) >= 1
    assert "deeper" in messages("[" * 100_000)[0]
    assert "deeper" in messages("a: " + "{a: " * 60 + "1" + "}" * 60)[0]
    assert "larger than" in messages("#" * (MAX_BYTES + 1))[0]


def test_an_alias_as_a_value_is_fine() -> None:
    document = parse("a: &margin {max_drop: 0.02}\nb: *margin\n")
    assert document.problems == []
    assert document.value == {"a": {"max_drop": 0.02}, "b": {"max_drop": 0.02}}


@given(st.text(max_size=300))
def test_any_text_gives_a_value_or_problems(text: str) -> None:
    document = parse(text)
    assert document.problems or document.value is not None or text.strip() != ""
