"""Items from JSONL, Parquet and data sets: the same items, bounded memory, errors that name file and row."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.items import load_items, take
from evals.rows import parquet_rows
from evals.spec import EvaluateSpec
from evals.tasks import Task, load_task, task_files
from sqtool.errors import DataError, RecipeError
from tests.unit.evals.builders import text_row, tool_row

Writer = Callable[..., Path]

ROWS = [
    text_row(0, "a", fields={"n": 1}),
    tool_row([{"name": "weather", "arguments": {"city": "Rome"}}], fields={"n": 2}),
    text_row(2, "c", fields={"n": 3}, cluster="k"),
]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    columns = dict.fromkeys(key for row in rows for key in row)
    parquet.write_table(pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows]), path)
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Task]:
    def load(items: str, more: str = "scorer: exact_match", limit: int | None = None) -> Task:
        (tmp_path / "t.yaml").write_text(f"task: t\nitems: {items}\n{more}\n")
        return load_task("t.yaml", tmp_path, EvaluateSpec(tasks=("t.yaml",), limit=limit))

    return load


def test_parquet_gives_the_items_of_jsonl(tmp_path: Path, write_jsonl: Writer) -> None:
    """Though Arrow gives every struct every key: a null in it is an absent key."""
    lines = load_items(write_jsonl("x.jsonl", ROWS))
    assert load_items(parquet_rows(write_parquet(tmp_path / "x.parquet", ROWS))) == lines


def test_a_data_set_from_disk(tmp_path: Path, load: Callable[..., Task]) -> None:
    from datasets import Dataset, DatasetDict

    rows = [text_row(i, f"w{i}") for i in range(7)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "one"))
    splits = {"train": Dataset.from_list(rows[:2]), "test": Dataset.from_list(rows[2:])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "many"))
    DatasetDict({"dev": splits["train"]}).save_to_disk(str(tmp_path / "single"))
    assert [item.id for item in load("{dataset: one}").items] == [f"i{i}" for i in range(7)]
    assert [item.id for item in load("{dataset: one}", limit=2).items] == ["i0", "i3"]
    assert [item.id for item in load("{dataset: single}").items] == ["i0", "i1"]
    assert len(load("{dataset: many, split: test}").items) == 5
    with pytest.raises(DataError, match=r"many: items\.split: no split 'tset'; did you mean 'test'"):
        load("{dataset: many, split: tset}")
    with pytest.raises(DataError, match="several splits") as caught:
        load("{dataset: many}")
    assert caught.value.remedy == "It has train, test."
    names = {path.name for path in task_files(tmp_path / "t.yaml", tmp_path)}
    assert {"t.yaml", "dataset_dict.json", "state.json", "data-00000-of-00001.arrow"} <= names


def test_a_data_set_in_a_folder_of_files(
    tmp_path: Path, load: Callable[..., Task], write_jsonl: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_jsonl("folder/test.jsonl", [text_row(1, "a"), text_row(2, "b")])
    assert [item.id for item in load("{dataset: folder}").items] == ["i1", "i2"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a data set that `datasets` can load"):
        load("{dataset: empty}")


def test_a_data_set_on_the_hub_needs_a_revision(load: Callable[..., Task], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.yaml: items\.dataset: no such folder: .*needs `revision`"):
        load("{dataset: some/name}")
    with pytest.raises(RecipeError, match=r"items\.revision"):
        load("{dataset: some/name, revision: main}")
    (tmp_path / "t.yaml").write_text(
        f"task: t\nitems: {{dataset: some/name, revision: {'a' * 40}}}\nscorer: exact_match\n"
    )
    assert [path.name for path in task_files(tmp_path / "t.yaml", tmp_path)] == ["t.yaml"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("{fil: x}", "items.fil: unknown key (did you mean 'file'?)"),
        ("{}", "give exactly one of file, dataset, bfcl"),
        ("{file: x, dataset: y}", "give exactly one of file, dataset, bfcl"),
        ("{file: x, split: test}", "`split` goes with `dataset`"),
        ("{file: x, base_items: 3}", "`base_items` goes with `tool_counts`"),
        ("{file: x, tool_counts: [1, 1]}", "twice"),
        ("5", "items"),
    ],
)
def test_what_is_no_source(load: Callable[..., Task], items: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(items)
    assert message in caught.value.message
    assert "t.yaml:2:" in caught.value.message


def test_a_bad_row_is_named(tmp_path: Path, load: Callable[..., Task]) -> None:
    rows = [text_row(i, "a") for i in range(300)]
    rows[270]["expected"] = {"text": " "}
    write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(DataError, match=r"x\.parquet \(row 271\): expected\.text: empty"):
        load("x.parquet")
    rows[270] = {**rows[0], "id": rows[0]["id"]}
    write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(DataError, match=r"\(row 271\): id: 'i0' is also on row 1"):
        load("x.parquet")


def test_files_that_cannot_be_read(tmp_path: Path, load: Callable[..., Task]) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"x\.parquet: not a readable Parquet file"):
        load("x.parquet")
    with pytest.raises(DataError, match=r"t\.yaml: items: no such file: .*y\.parquet"):
        load("y.parquet")


def test_a_limit_takes_what_take_takes_and_checks_the_rest(write_jsonl: Writer) -> None:
    path = write_jsonl("x.jsonl", [text_row(i, "a") for i in range(10)])
    for limit in (1, 3, 10, 11, None):
        assert load_items(path, limit=limit) == take(load_items(path), limit)
    path = write_jsonl("x.jsonl", [text_row(1, "a"), {**text_row(2, "b"), "id": ""}])
    with pytest.raises(DataError, match=r"x\.jsonl:2: id"):
        load_items(path, limit=1)


def test_rows_that_are_not_kept_take_no_memory(tmp_path: Path, load: Callable[..., Task]) -> None:
    """24 MB of texts, of which four are asked for."""
    rows = [text_row(i, "a", messages=[{"role": "user", "content": f"{i} " * 3000}]) for i in range(2000)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    del rows
    load("x.parquet", limit=4)  # imports
    tracemalloc.start()
    try:
        assert len(load("x.parquet", limit=4).items) == 4
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6, f"{peak / 1e6:.1f} MB of Python objects for a file of {path.stat().st_size / 1e6:.1f} MB"
