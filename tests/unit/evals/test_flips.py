"""What changed between two evaluations: counted from records, whatever their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evals.flips import compare_records, encoder, first_difference
from tests.unit.evals.tiny import save_tokenizer


def write(folder: Path, rows: list[dict[str, Any]], task: str = "t") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(name: str, text: str = "", calls: Any = (), reason: str = "stop", **scores: float) -> dict[str, Any]:
    output = {"text": text, "tool_calls": list(calls), "finish_reason": reason}
    return {"id": name, "scores": {"gen_len": 0.1, "empty": 0.0, **scores}, "output": output}


def test_flips_and_where_answers_begin_to_differ(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": '{"a": 1}'}
    before = [
        row("a", "one two", match=1.0, f1=0.5),
        row("b", "same", match=0.0, f1=1.0),
        row("c", calls=[call], match=1.0, f1=1.0),
        row("d", "cut", match=0.0, f1=0.0),
        row("gone", "x", match=1.0),
    ]
    after = [
        row("c", calls=[{**call, "arguments": '{"a": 2}'}], match=0.0, f1=1.0),
        row("d", "cut", reason="length", match=0.0, f1=0.0),
        row("b", "same", match=1.0, f1=1.0),
        row("a", "one four", match=1.0, f1=0.25),
    ]
    found = compare_records(write(tmp_path / "l", before), write(tmp_path / "r", after))["t"]
    assert found["items"] == 4
    assert found["flips"] == {"match": {"right_to_wrong": 1, "wrong_to_right": 1, "right": 1, "wrong": 1}}
    divergence = found["divergence"]
    assert (divergence["same"], divergence["different"]) == (1, 3)
    assert divergence["characters"]["p50"] == 4.0, "at 4 (two/four), 8 (in the arguments), 3 (the end)"
    assert "tokens" not in divergence
    words = compare_records(tmp_path / "l", tmp_path / "r", str.split)["t"]["divergence"]  # type: ignore[arg-type]
    assert words["tokens"]["p10"] <= words["tokens"]["p50"] == 1.0


def test_sampled_and_likelihood_tasks_have_no_divergence(tmp_path: Path) -> None:
    rows = [row("a", "x", match=1.0)]
    likely = [{**rows[0], "output": {**rows[0]["output"], "loglikelihoods": [{"logprob": -1.0}]}}]
    for task, some in (("drawn", rows), ("likely", likely), ("greedy", rows)):
        write(tmp_path / "l", some, task)
        write(tmp_path / "r", some, task)
    write(tmp_path / "r", rows, "new")
    found = compare_records(tmp_path / "l", tmp_path / "r", sampled={"drawn"})
    assert {task: "divergence" in one for task, one in found.items()} == {
        "drawn": False,
        "greedy": True,
        "likely": False,
    }
    assert all(one["flips"]["match"]["right"] == 1 for one in found.values())


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_first_difference_is_the_end_of_what_is_common(left: str, right: str) -> None:
    at = first_difference(left, right)
    assert left[:at] == right[:at]
    assert left[at : at + 1] != right[at : at + 1] or left == right


def test_tokens_of_the_models_own_tokenizer(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    encode = encoder(tmp_path)
    assert encode is not None
    assert list(encode("<tool_call>ab")) == [*encode("<tool_call>"), *encode("ab")]
    assert len(encode("<tool_call>")) == 1
    assert encoder(tmp_path / "none") is None
