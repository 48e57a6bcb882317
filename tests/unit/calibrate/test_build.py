from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file

from calibrate.build import source_paths, traffic_path
from calibrate.render import load_tokenizer, render
from calibrate.spec import CalibrateSpec
from sqtool.errors import EXIT_REFUSED, CoverageError, DataError, UsageError
from tests.contract.tiny import make_tokenizer
from tests.unit.calibrate.building import Notes, Write, chosen_of, make, pool

from .conftest import item

__all__ = ["pool"]


def test_rows_hold_the_conversations_whole(model: Path, pool: Path, tmp_path: Path) -> None:
    summary = make(model, tmp_path / "out", pool, max_seq_length=256)
    kept = load_file(tmp_path / "out" / "tokens.safetensors")
    rows, places = kept["input_ids"], kept["position_ids"]
    assert rows.dtype == places.dtype == np.int32
    assert rows.shape == places.shape == (summary["rows"], summary["row_length"]) == (summary["rows"], 256)
    chosen = [json.loads(line) for line in (tmp_path / "out" / "calibration.jsonl").read_text().splitlines()]
    assert len(chosen) == summary["samples"] == 12
    tokenizer = load_tokenizer(model)
    expected = [render(tokenizer, record) for record in chosen]
    starts = np.flatnonzero(places.ravel() == 0)
    found = [piece.tolist() for piece in np.split(rows.ravel(), starts[1:])]
    assert all(ids in found for ids in expected)
    assert summary["tokens"] == sum(len(ids) for ids in expected)
    assert summary["tokens_repeated"] == rows.size - summary["tokens"]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(model: Path, pool: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(model, tmp_path / name, pool, seed=seed)

    def read(name: str) -> list[bytes]:
        return [
            (tmp_path / name / f).read_bytes() for f in ("calibration.jsonl", "tokens.safetensors", "coverage.json")
        ]

    assert read("a") == read("b")
    assert read("a") != read("c")


def test_what_is_cut_is_counted_and_said(model: Path, write: Write, tmp_path: Path) -> None:
    path = write(item(1, "a", text="long " * 40), item(2, "a"))
    progress = Notes()
    length = len(render(load_tokenizer(model), item(1, "a", text="long " * 40)))
    short = len(render(load_tokenizer(model), item(2, "a")))
    summary = make(model, tmp_path / "out", path, progress, max_seq_length=100)
    assert short < 100 < length
    assert (summary["truncated"], summary["tokens_cut"]) == (1, length - 100)
    assert summary["tokens"] == 100 + short
    said = " ".join(progress.notes)
    assert f"lost {length - 100} tokens" in said
    assert "2 different conversations, 12 were asked for" in said


def test_coverage_counts_kinds_and_tools(model: Path, pool: Path, tmp_path: Path) -> None:
    summary = make(model, tmp_path / "out", pool, num_calibration_samples=40)
    report = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert report["verdict"] == summary["coverage"] == "COVERED"
    assert {k: v["samples"] for k, v in report["kinds"].items()} == {"plain": 30, "tool": 10}
    assert report["tools"]["by_name"] == {
        "tool_0": {"called": 4, "offered": 4},
        "tool_1": {"called": 3, "offered": 3},
        "tool_2": {"called": 3, "offered": 3},
    }
    assert sum(v["tokens"] for v in report["kinds"].values()) == summary["tokens"]


@pytest.mark.parametrize(
    ("coverage", "said", "remedy"),
    [
        ({"min_per_kind": 20}, "kinds below the minimum: tool 10 of 20", "add a source"),
        ({"kinds": ["prose"]}, "kinds below the minimum: prose 0 of 2", "add a source"),
        ({"min_per_kind": 0, "kinds": ["prose"]}, "prose 0 of 1", "add a source"),
        ({"min_per_tool": 4}, "tools below the minimum: tool_1 3 of 4, tool_2 3 of 4", "add a source"),
        ({"tools": ["nobody"]}, "tools below the minimum: nobody 0 of 1", "add a source"),
    ],
)
def test_a_thin_set_is_refused_by_name(
    model: Path, pool: Path, tmp_path: Path, coverage: dict[str, Any], said: str, remedy: str
) -> None:
    with pytest.raises(CoverageError) as caught:
        make(model, tmp_path / "out", pool, num_calibration_samples=40, coverage=coverage)
    assert said in str(caught.value)
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == EXIT_REFUSED
    report = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert report["verdict"] == "THIN"
    assert not (tmp_path / "out" / "tokens.safetensors").exists()


def test_a_choice_that_missed_what_the_pool_has_says_to_take_more(model: Path, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(CoverageError) as caught:
        make(model, tmp_path / "out", pool, num_calibration_samples=3, coverage={"min_per_kind": 2})
    assert "raise calibrate.num_calibration_samples" in caught.value.remedy


def test_arguments_from_a_request_log_are_rendered_as_objects(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    wire = item(5, "a", tool="f")
    wire["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"n": 5}'
    wire["messages"][1]["content"] = None
    assert render(tokenizer, wire) == render(tokenizer, item(5, "a", tool="f"))


def test_a_template_that_drops_the_tools_is_an_error(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    make_tokenizer(folder, template="{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "config.json").write_text('{"vocab_size": 320}')
    with pytest.raises(DataError, match="drops its tools"):
        make(folder, tmp_path / "out", pool, num_calibration_samples=40)


def test_a_template_that_fails_names_the_line(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "picky"
    make_tokenizer(folder, template="{{ raise_exception('only one turn') }}")
    (folder / "config.json").write_text('{"vocab_size": 320}')
    path = write(item(1, "a"), item(2, "a"))
    with pytest.raises(DataError, match=r"pool\.jsonl:\d: messages: the chat template fails on it: only one turn"):
        make(folder, tmp_path / "out", path)


def test_a_tokenizer_that_does_not_fit_the_model(model: Path, pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    (folder / "config.json").write_text('{"vocab_size": 100}')
    with pytest.raises(DataError, match="has 259 tokens and the model embeds 100"):
        make(folder, tmp_path / "out", pool)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="tokenizer cannot be read"):
        make(folder, tmp_path / "out", pool)


def test_a_tokenizer_without_a_template(pool: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "bare", template="")
    with pytest.raises(DataError, match="no chat template"):
        make(tmp_path / "bare", tmp_path / "out", pool)


def test_the_reference_model_brings_its_own_pool(tmp_path: Path) -> None:
    target, data = tmp_path / "target", tmp_path / "data"
    target.mkdir()
    with pytest.raises(UsageError, match="sources is empty"):
        source_paths(CalibrateSpec(), model=target)
    data.mkdir()
    (data / "calibration.jsonl").touch()
    assert source_paths(CalibrateSpec(), model=target) == [(data / "calibration.jsonl").resolve()]
    assert traffic_path(CalibrateSpec(), model=target) is None
    (data / "traffic.jsonl").touch()
    assert traffic_path(CalibrateSpec(), model=target) == (data / "traffic.jsonl").resolve()
    own = CalibrateSpec.model_validate({"sources": [{"path": "a.jsonl"}]})
    assert traffic_path(own, model=target) is None, "the reference's traffic is not that of other data"
    assert traffic_path(own.model_copy(update={"match": "t.jsonl"}), model=target, root=data) == data / "t.jsonl"


def test_relative_sources_start_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").touch()
    spec = CalibrateSpec.model_validate({"sources": [{"path": "a.jsonl"}, {"path": str(tmp_path / "b.jsonl")}]})
    assert source_paths(spec, model=tmp_path, root=tmp_path) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with pytest.raises(DataError, match="no such calibration file"):
        source_paths(CalibrateSpec.model_validate({"sources": [{"path": "c.jsonl"}]}), model=tmp_path, root=tmp_path)


def test_a_budget_of_tokens(model: Path, pool: Path, tmp_path: Path) -> None:
    summary = make(model, tmp_path / "out", pool, target_tokens=600, coverage={"min_per_kind": 1})
    longest = max(summary["row_length"], 32)
    assert 600 <= summary["tokens"] < 600 + longest
    whole = make(model, tmp_path / "whole", pool, target_tokens=10**6)
    assert whole["samples"] == 40
    greedy = make(model, tmp_path / "greedy", pool, target_tokens=600, selection="coverage")
    assert 600 - longest < greedy["tokens"] <= 600
    with pytest.raises(ValidationError, match="not both"):
        CalibrateSpec(target_tokens=5, num_calibration_samples=5)


def test_coverage_chooses_the_same_every_time_and_keeps_the_minimum(model: Path, pool: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(
            model, tmp_path / name, pool, selection="coverage", num_calibration_samples=8, coverage={"min_per_kind": 3}
        )
    assert chosen_of(tmp_path / "a") == chosen_of(tmp_path / "b")
    kinds = [record["kind"] for record in chosen_of(tmp_path / "a")]
    assert kinds.count("tool") >= 3
    assert kinds.count("plain") >= 3


def test_sources_of_every_kind_in_one_set(model: Path, write: Write, tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("A first paragraph, " * 10 + "\n\nand a second.\n")
    request = {"messages": [{"role": "user", "content": "ping"}]}
    log = {"request": request, "response": {"choices": [{"message": {"role": "assistant", "content": "pong"}}]}}
    failed = {"request": request, "response": {"error": "no"}}
    paths = [write(log, failed, name="log.jsonl"), tmp_path / "doc.txt"]
    sources = [{"path": str(path), "kind": kind} for path, kind in zip(paths, ("chat", "prose"), strict=True)]
    summary = make(model, tmp_path / "out", paths[0], sources=sources, coverage={"min_per_kind": 1}, max_seq_length=100)
    assert summary["kinds"] == {"chat": 1, "prose": 2}
    assert (summary["unanswered"], summary["truncated"]) == (1, 1)
    kept = load_file(tmp_path / "out" / "tokens.safetensors")["input_ids"]
    assert "<|im_start|>" not in load_tokenizer(model).decode(kept[0]), "a document is no chat"
    assert [s["chosen"] for s in summary["sources"]] == [1, 2]


@pytest.fixture
def short_context(model: Path, tmp_path: Path) -> Path:
    """A model with a context of 64 tokens."""
    folder = tmp_path / "short"
    shutil.copytree(model, folder)
    (folder / "config.json").write_text('{"vocab_size": 320, "max_position_embeddings": 64}')
    return folder


def test_a_conversation_longer_than_the_context(short_context: Path, write: Write, tmp_path: Path) -> None:
    path = write(item(1, "a"), item(2, "a", text="long " * 40), item(3, "a"))
    rows: dict[str, Any] = {"max_seq_length": 64}
    with pytest.raises(DataError, match=r"pool\.jsonl:2: messages: \d+ tokens, and the model's context is 64") as error:
        make(short_context, tmp_path / "error", path, **rows)
    assert "on_too_long: skip" in error.value.remedy
    summary = make(short_context, tmp_path / "skip", path, on_too_long="skip", **rows)
    assert (summary["samples"], summary["too_long"]) == (2, 1)
    greedy = make(short_context, tmp_path / "greedy", path, on_too_long="skip", selection="coverage", **rows)
    assert (greedy["samples"], greedy["too_long"]) == (2, 1)
    assert make(short_context, tmp_path / "cut", path, on_too_long="truncate", **rows)["samples"] == 3
    with pytest.raises(UsageError, match="max_seq_length is 128, and the model's context is 64 tokens"):
        make(short_context, tmp_path / "rows", path, max_seq_length=128)


def test_a_pool_of_which_nothing_is_left_says_why(short_context: Path, write: Write, tmp_path: Path) -> None:
    long = item(2, "a", text="long " * 40)
    path = write(long, long, "{")
    with pytest.raises(DataError) as caught:
        make(short_context, tmp_path / "out", path, max_seq_length=64, on_too_long="skip", on_bad_line="skip")
    assert str(caught.value).endswith(
        "nothing is left to calibrate with: 3 read, 1 unreadable, 1 repeated, 1 longer than the model's context"
    )


def test_the_loss_mask_marks_what_the_assistant_wrote(model: Path, pool: Path, tmp_path: Path) -> None:
    summary = make(model, tmp_path / "out", pool, loss_mask="assistant", max_seq_length=256)
    kept = load_file(tmp_path / "out" / "tokens.safetensors")
    mask = kept["loss_mask"]
    assert mask.shape == kept["input_ids"].shape
    tokenizer = load_tokenizer(model)
    said = tokenizer.decode(kept["input_ids"][mask == 1])
    assert "Answer" in said
    assert "Question" not in said
    assert "assistant" not in said, "the template's header is not the assistant's"
    assert said.count("<|im_end|>") >= summary["samples"], "the end of the turn is"
    without = make(model, tmp_path / "plain", pool, max_seq_length=256)
    assert "loss_mask" not in load_file(tmp_path / "plain" / "tokens.safetensors")
    assert without["loss_tokens"] is None


def test_a_template_that_rewrites_earlier_turns_has_no_loss_mask(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rewrites"
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
        "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}"
    )
    make_tokenizer(folder, template=template)
    (folder / "config.json").write_text('{"vocab_size": 320}')
    with pytest.raises(DataError, match="cannot tell the assistant's tokens"):
        make(folder, tmp_path / "out", pool, loss_mask="assistant")


def test_the_templates_own_marks_are_taken(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}U:{{ m.content }}{% endif %}{% endfor %}"
    )
    make_tokenizer(folder, template=template)
    (folder / "config.json").write_text('{"vocab_size": 320}')
    make(folder, tmp_path / "out", pool, loss_mask="assistant", coverage={"refuse": "never"})
    kept = load_file(tmp_path / "out" / "tokens.safetensors")
    assert load_tokenizer(folder).decode(kept["input_ids"][kept["loss_mask"] == 1]).startswith("Answer")


def test_the_card_says_what_the_set_is(model: Path, pool: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(model, tmp_path / name, pool)
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert (tmp_path / "a" / "card.json").read_bytes() == (tmp_path / "b" / "card.json").read_bytes()
    assert card["settings"]["max_seq_length"] == 256
    assert len(card["digest"]) == 64
    text = (tmp_path / "a" / "card.md").read_text()
    assert card["digest"] in text
    assert f"| {pool} | 40 | 12 |" in text
    again = make(model, tmp_path / "again", tmp_path / "a" / "calibration.jsonl", coverage={"refuse": "never"})
    assert again["samples"] == 12, "a finished set is a source"
