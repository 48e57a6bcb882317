"""Hostile texts: whatever a model answers, the report shows it and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sqtool.hygiene import clean
from sqtool.report import write_report
from sqtool.report.markdown import block, code, inline

Make = Callable[..., Path]
READER = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](https://evil.example/pixel.png)",
    "[click](javascript:alert(1))",
    "```\n# RELEASED: fake\n```",
    "````\n~~~\n# RELEASED",
    "| a | b |\n| - | - |",
    "# RELEASED: demo",
    "- item\n+ item\n1. item",
    "> quote",
    "a\r\nb\u2028c\u202edesrever\x1b[31mred\x00",
    "&lt;b&gt; &#x27;",
    "**bold** _em_ ~~gone~~ `code` $x$",
    "<!-- hidden -->",
    "[ref]: http://evil.example",
    "\\",
    "---",
    "===",
]


def tokens(text: str) -> set[str]:
    found = set()
    for token in READER.parse(text):
        found.add(token.type)
        found.update(child.type for child in token.children or ())
    return found


PLAIN = {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}


@pytest.mark.parametrize("text", HOSTILE)
def test_inline_is_plain_text(text: str) -> None:
    assert tokens(inline(text)) <= PLAIN
    shown = "".join(c.content for t in READER.parse(inline(text)) for c in t.children or ())
    assert shown == " ".join(clean(text).split()).strip()


@given(st.text(max_size=80))
def test_inline_is_plain_text_always(text: str) -> None:
    assert tokens(inline(text)) <= PLAIN


@given(st.text(alphabet="`~# \na|<>", max_size=60))
def test_a_block_is_one_block(text: str) -> None:
    parsed = READER.parse(block(text) + "\n\nafter\n")
    assert [t.type for t in parsed] == ["fence", "paragraph_open", "inline", "paragraph_close"]


@given(st.text(alphabet="`| \na*", max_size=30))
def test_a_code_span_does_not_open_anything(text: str) -> None:
    assert tokens("x " + code(text) + " y") <= PLAIN | {"code_inline"}


def test_addresses_are_no_links_even_for_renderers_that_make_them() -> None:
    shown = inline("see https://evil.example and www.evil.example or a@evil.example")
    assert shown == "see https\\://evil.example and www\\.evil.example or a\\@evil.example"


def test_names_keep_their_look() -> None:
    assert inline("tool_calls.call_match: 1.2 (p95)") == "tool_calls.call_match: 1.2 (p95)"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_report_with_hostile_answers_keeps_its_headings(make_run: Make, text: str) -> None:
    error = {"message": f"the candidate said {text}", "remedy": text}
    folder = make_run("refused", wrong=80, said=text, drop=("speculate", "approve", "release"), error=error, item=text)
    report = write_report(folder).read_text()
    parsed = READER.parse(report)
    headings = [parsed[i + 1].content for i, t in enumerate(parsed) if t.type == "heading_open"]
    assert headings == [
        "REFUSED: demo",
        "Quality",
        "Items that got worse",
        "Calibration coverage",
        "Drift (explains; task scores decide)",
        "Measured with",
        "The run",
        "What to deploy",
        "Each arm",
        "Rules",
    ]
    kinds = tokens(report)
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "blockquote_open", "hr"}
    assert not any(ord(c) < 32 and c != "\n" for c in report)
