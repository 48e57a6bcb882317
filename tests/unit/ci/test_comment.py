from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqtool.ci import comment, marker, read_run
from sqtool.ci.comment import _text
from sqtool.files import read_json
from tests.unit.ci.conftest import AFTER_GATE, STAGES, Ended, change_verdict
from tests.unit.report.test_markdown import HOSTILE, PLAIN, READER, tokens

REFUSED = """\
<!-- sqtool:demo -->
## REFUSED: demo (6 min 40 s)

- REGRESSED: recall.exact_match
- weights 29.1 MB, now 10.5 MB, 64 % smaller
- 56 layers quantized, 4.16 bits per weight in them

**What to do:** Look.

| metric | baseline | candidate | change | interval | margin | items | better/worse | outcome |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| recall.exact_match | 100.00 % | 80.00 % | -20.00 | -23.49 to -16.92 | 2.00 | 400 | 0/80 | REGRESSED: the drop is \
shown to exceed the margin |

<details><summary>Items that got worse (examples)</summary>

**recall.exact_match**, item `recall-0` (early). Expected:

```text
right
```

Baseline:

```text
right
```

Candidate:

```text
wrong
```

"""


def test_a_refused_run_as_a_whole(ended: Ended) -> None:
    said = comment(read_run(ended("refused", wrong=80)))
    assert said.startswith(REFUSED)
    assert said.count("**recall.exact_match**, item") == 3
    assert said.endswith(
        "<details><summary>Repeat it</summary>\n\n"
        "```text\nsqtool quantize recipes/demo.yaml\nsqtool gate demo\nsqtool explain demo\n```\n\n</details>\n"
    )


def test_a_released_run_has_the_arms_and_no_items(ended: Ended) -> None:
    said = comment(read_run(ended()), marked=False)
    assert said.startswith("## RELEASED: demo (6 min 40 s)\n\n- every gated metric held its margin; published as ")
    assert "- speculation: approved" in said
    assert "| speculation only | 3.75 |" in said
    assert "both 1.70 times" in said
    assert "got worse" not in said


def test_a_run_that_failed_says_where_and_what_to_do(ended: Ended) -> None:
    error = {"type": "EngineError", "message": "the vLLM server died", "remedy": "Look at its log."}
    folder = ended("failed", drop=STAGES[3:], error=error)
    said = comment(read_run(folder))
    assert "- the vLLM server died\n" in said
    assert "**What to do:** Look at its log." in said
    assert "| metric |" not in said


def test_each_metrics_worst_item_comes_before_anybodys_second_and_none_twice(ended: Ended) -> None:
    folder = ended("refused", wrong=80)
    verdict = read_json(folder / "gate/verdict.json")
    (metric,) = verdict["metrics"]
    other = {**metric, "metric": "recall.form", "worst": [{**metric["worst"][0], "id": "form-0"}, *metric["worst"]]}
    change_verdict(folder, metrics=[metric, other])
    said = comment(read_run(folder))
    assert [line for line in said.splitlines() if ", item `" in line] == [
        "**recall.exact_match**, item `recall-0` (early). Expected:",
        "**recall.form**, item `form-0` (early). Expected:",
        "**recall.exact_match**, item `recall-1` (early). Expected:",
    ]


def test_slices_that_are_not_judged_are_counted_not_shown(ended: Ended) -> None:
    said = comment(read_run(ended("refused", wrong=80, gate={"slices": ["kind"]})))
    assert "| recall.exact_match \\[kind=early\\] |" in said
    assert "kind=rare" not in said
    assert "1 slices have too few items to be judged." in said


def test_the_marker_is_one_html_comment_whatever_the_name() -> None:
    assert marker("awq4-2.1_x") == "<!-- sqtool:awq4-2.1_x -->"
    assert marker("a--> <b>") == "<!-- sqtool:a-b- -->"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_add_no_markup(ended: Ended, text: str) -> None:
    error = {"type": "RegressedError", "message": text, "remedy": text}
    folder = ended("refused", wrong=80, said=text, item=text, error=error)
    parsed = READER.parse(comment(read_run(folder)))
    assert [parsed[i + 1].content for i, t in enumerate(parsed) if t.type == "heading_open"] == [
        "REFUSED: demo (6 min 40 s)"
    ]
    html = [t.content.strip() for t in parsed if t.type == "html_block"]
    own = ("<!-- sqtool:demo -->", "<details><summary>", "</details>")
    assert all(block.startswith(own) and block.count("\n") == 0 for block in html)
    inside = {child.type for t in parsed for child in t.children or ()}
    assert not inside & {"html_inline", "link_open", "image", "s_open"}


def test_nobody_is_mentioned_and_no_issue_is_linked() -> None:
    assert _text("@team fixes #12") == "\\@\u2060team fixes \\#\u206012"


@given(st.text(max_size=80))
def test_texts_are_plain_always(text: str) -> None:
    assert tokens(_text(text)) <= PLAIN


def test_a_run_with_much_to_say_fits_into_a_comment(ended: Ended) -> None:
    long = "x" * 50_000
    error = {"type": "RegressedError", "message": long, "remedy": long}
    folder = ended("refused", wrong=80, said=long, error=error)
    verdict = read_json(folder / "gate/verdict.json")
    parts = [{**verdict["metrics"][0], "slice_field": "n", "slice_value": str(n)} for n in range(500)]
    change_verdict(folder, slices=parts)
    said = comment(read_run(folder))
    assert len(said) < 30_000
    assert "471 more rows are in the report." in said


def test_a_copied_run_is_read_where_it_lies(ended: Ended, tmp_path: Path) -> None:
    folder = ended("refused", wrong=80)
    moved = tmp_path / "downloaded"
    folder.rename(moved)
    assert "REGRESSED: recall.exact_match" in comment(read_run(moved))


def test_a_run_of_two_models_is_repeated_by_gate(ended: Ended) -> None:
    folder = ended("refused", wrong=80, drop=AFTER_GATE)
    state = read_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps({**state, "recipe": None}))
    (folder / "recipe.json").write_text(
        '{"quantize": {"checkpoint": "/models/w4 a16"}, "evaluate": {"tasks": ["recall", "tool_calls"]}}'
    )
    assert read_run(folder).repeat[0] == (
        "sqtool gate --baseline artifacts/reference/target --candidate '/models/w4 a16' --task recall --task tool_calls"
    )
