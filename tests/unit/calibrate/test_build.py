from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from calibrate.build import build, source_paths
from calibrate.render import load_tokenizer, render
from calibrate.spec import CalibrateSpec
from sqtool.errors import EXIT_REFUSED, CoverageError, DataError, UsageError
from sqtool.progress import SILENT
from tests.contract.tiny import make_tokenizer

from .conftest import item

Write = Callable[..., Path]


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Any:
        with SILENT.task(description, total) as task:
            yield task

    def note(self, text: str) -> None:
        self.notes.append(text)


def make(model: Path, out: Path, path: Path, progress: Any = SILENT, seed: int = 0, **settings: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True, parents=True)
    values = {"sources": [{"path": str(path)}], "num_calibration_samples": 12, "max_seq_length": 32, **settings}
    return build(CalibrateSpec.model_validate(values), model=model, seed=seed, out=out, progress=progress)


@pytest.fixture
def pool(write: Write) -> Path:
    return write(*[item(n, "plain") for n in range(30)], *[item(n, "tool", tool=f"tool_{n % 3}") for n in range(10)])


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


def test_relative_sources_start_at_the_root(tmp_path: Path) -> None:
    spec = CalibrateSpec.model_validate({"sources": [{"path": "a.jsonl"}, {"path": "/b.jsonl"}]})
    assert source_paths(spec, model=tmp_path, root=tmp_path) == [tmp_path / "a.jsonl", Path("/b.jsonl")]
