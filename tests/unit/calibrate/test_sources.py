"""Every kind of source gives the same records, a batch at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from calibrate.conversation import as_record
from calibrate.sources import read_source, source_files
from calibrate.spec import SourceSpec
from sqtool.errors import DataError, UsageError

from .conftest import item
from .hub_double import serving

RECORDS = [item(1, "a"), item(2, "b", tool="f")]


def read(root: Path, **settings: Any) -> list[dict[str, Any]]:
    lines = list(read_source(SourceSpec.model_validate(settings), root))
    for line in lines:
        if isinstance(line.value, DataError):
            raise line.value
    return [as_record(line.value) for line in lines if isinstance(line.value, dict)]


def test_a_folder_is_all_its_files(write: Callable[..., Path], tmp_path: Path) -> None:
    write(RECORDS[1], name="b.jsonl")
    write(RECORDS[0], name="a.ndjson")
    (tmp_path / "README").write_text("not data")
    assert read(tmp_path, path=".") == RECORDS


def test_parquet_keeps_what_json_has(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Structs of a table have all keys of all rows, and a null where one has none: those are no part of a record.
    rows = [{"tools": None, **record} for record in RECORDS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "structs.parquet")
    assert read(tmp_path, path="structs.parquet") == RECORDS
    for row in rows:
        row |= {key: json.dumps(row[key]) for key in ("messages", "tools") if row[key] is not None}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "text.parquet")
    assert read(tmp_path, path="text.parquet") == RECORDS
    (tmp_path / "broken.parquet").write_text("x")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path, path="broken.parquet")


def test_plain_text_is_a_document_a_paragraph_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n one\ntwo\n\n\nthree\n")
    lines = list(read_source(SourceSpec(path="a.txt"), tmp_path))
    assert [(line.number, line.value) for line in lines] == [(2, {"text": "one\ntwo"}), (6, {"text": "three"})]
    assert read(tmp_path, path="a.txt", documents="file") == [{"text": "one\ntwo\n\n\nthree"}]
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b\.txt:1: not UTF-8"):
        read(tmp_path, path="b.txt")


def test_a_format_that_the_name_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(json.dumps(RECORDS[0]))
    assert read(tmp_path, path="log") == RECORDS[:1]
    assert read(tmp_path, path="log", format="text")[0]["text"].startswith("{")


def test_a_saved_dataset_by_folder_and_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"id": r["id"], "kind": r["kind"], "messages": json.dumps(r["messages"])} for r in RECORDS[:1]]
    data = Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data, "held_out": data}).save_to_disk(tmp_path / "many")
    assert read(tmp_path, dataset="one") == RECORDS[:1]
    assert read(tmp_path, dataset="many", split="held_out") == RECORDS[:1]
    assert source_files(SourceSpec(dataset="one"), tmp_path), "its files are hashed"
    with pytest.raises(UsageError, match="no split 'heldout'") as caught:
        read(tmp_path, dataset="many", split="heldout")
    assert "held_out" in caught.value.remedy
    data.to_parquet(tmp_path / "folder" / "train.parquet")
    assert read(tmp_path, dataset="folder", streaming=True) == RECORDS[:1]


FROM_THE_HUB = """
import json, sys
from pathlib import Path
from calibrate.sources import read_source
from calibrate.spec import SourceSpec
from sqtool.errors import DataError
try:
    for line in read_source(SourceSpec.model_validate_json(sys.argv[1]), Path()):
        print(json.dumps(line.value))
except DataError as error:
    sys.exit(str(error))
"""


def from_the_hub(address: str, home: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """What a process that knows the hub by this address reads."""
    words = [sys.executable, "-c", FROM_THE_HUB, SourceSpec(**settings).model_dump_json()]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=home)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_on_the_hub(streaming: bool, tmp_path: Path) -> None:
    data = "".join(json.dumps(record) + "\n" for record in RECORDS[:1]).encode()
    files = {"train.jsonl": data, "test.jsonl": data * 3}
    with serving("owner/talks", files) as (address, asked):
        done = from_the_hub(address, tmp_path, dataset="owner/talks", streaming=streaming, revision="v1")
        assert [json.loads(line) for line in done.stdout.splitlines()] == RECORDS[:1], done.stderr
        assert "GET /api/datasets/owner/talks/revision/v1" in asked
        missing = from_the_hub(address, tmp_path, dataset="owner/nothing", streaming=streaming)
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].startswith("owner/nothing[train]: calibrate.sources: the dataset cannot")


def test_a_dataset_that_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"nobody/nothing\[train\]: calibrate.sources: the dataset cannot be read"):
        read(tmp_path, dataset="nobody/nothing")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "either path"),
        ({"path": "a", "dataset": "b"}, "either path"),
        ({"path": "a", "split": "x"}, "split goes with dataset"),
    ],
)
def test_a_source_is_one_thing(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SourceSpec.model_validate(settings)
