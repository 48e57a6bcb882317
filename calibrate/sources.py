"""Reading sources one record at a time, whatever they are kept in: nothing here holds more than a batch.

A line that cannot be read comes out as the DataError that says so: whether it ends the run is the caller's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.spec import JSONL_SUFFIXES, TEXT_SUFFIXES, Format, SourceSpec
from sqtool.errors import DataError, UsageError, did_you_mean

PARQUET_BATCH = 256
SUFFIXES: dict[str, Format] = {
    **dict.fromkeys(JSONL_SUFFIXES, "jsonl"),
    ".parquet": "parquet",
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One raw record, or why it is none."""

    path: Path
    number: int
    """Line of a text file, row of a table; from 1."""
    value: dict[str, Any] | DataError


def source_files(source: SourceSpec, root: Path) -> list[Path]:
    """The files of a source, sorted; none when it is a hub name. Raises DataError when there is nothing."""
    if source.dataset is not None:
        folder = root / source.dataset
        return sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    assert source.path is not None
    path = root / source.path
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
        if not files:
            raise DataError(path, f"no file here ends in {', '.join(SUFFIXES)}", field="calibrate.sources")
        return files
    if not path.is_file():
        raise DataError(
            path,
            "no such calibration file",
            field="calibrate.sources",
            remedy="Give calibrate.sources a file of conversations: JSONL, Parquet or plain text.",
        )
    return [path]


def read_source(source: SourceSpec, root: Path) -> Iterator[Line]:
    """Every record of a source, in order. Raises DataError for a source that cannot be read at all."""
    if source.dataset is not None:
        yield from _dataset(source, root)
        return
    for path in source_files(source, root):
        kind = SUFFIXES.get(path.suffix, "jsonl") if source.format == "auto" else source.format
        if kind == "parquet":
            yield from _parquet(path)
        elif kind == "text":
            yield from _text(path, whole=source.documents == "file")
        else:
            yield from read_lines(path)


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of a JSONL file; empty lines are nothing."""
    import msgspec

    decode = msgspec.json.Decoder().decode
    try:
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, 1):
                if not raw.strip():
                    continue
                try:
                    value = decode(raw)
                except msgspec.DecodeError as error:
                    yield Line(path, number, DataError(path, f"not JSON: {error}", line=number))
                except UnicodeDecodeError:
                    yield Line(path, number, DataError(path, "not UTF-8 text", line=number))
                except RecursionError:
                    yield Line(path, number, DataError(path, "not JSON: nested too deeply", line=number))
                else:
                    yield _object(path, number, value)
    except FileNotFoundError:
        raise DataError(path, "no such file") from None


def _object(path: Path, number: int, value: Any) -> Line:
    if isinstance(value, dict):
        return Line(path, number, value)
    wrong = DataError(path, f"expected a JSON object, found {type(value).__name__}", line=number)
    return Line(path, number, wrong)


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        rows = (row for batch in table.iter_batches(PARQUET_BATCH) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Line(path, number, _row(row))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(path, f"not a Parquet file that can be read: {error}") from None


def _text(path: Path, *, whole: bool) -> Iterator[Line]:
    start, lines = 1, list[str]()
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if whole or line.strip():
                    start = start if lines else number
                    lines.append(line)
                elif lines:
                    yield Line(path, start, {"text": "".join(lines).strip()})
                    lines = []
    except UnicodeDecodeError:
        yield Line(path, start, DataError(path, "not UTF-8 text", line=start))
        return
    if any(line.strip() for line in lines):
        yield Line(path, start, {"text": "".join(lines).strip()})


def _dataset(source: SourceSpec, root: Path) -> Iterator[Line]:
    from datasets import IterableDataset, load_dataset, load_from_disk
    from datasets.exceptions import DatasetNotFoundError

    assert source.dataset is not None
    folder = root / source.dataset
    where = Path(str(source))
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = load_from_disk(folder)
            if source.split not in splits:
                raise UsageError(
                    f"calibrate.sources: {source.dataset} has no split {source.split!r}",
                    remedy=did_you_mean(source.split, list(splits)),
                )
            rows = splits[source.split]
        elif (folder / "state.json").is_file():
            rows = load_from_disk(folder)
        else:
            rows = load_dataset(
                str(folder) if folder.is_dir() else source.dataset,
                source.name,
                split=source.split,
                revision=source.revision,
                streaming=source.streaming,
            )
        # Tables are mapped from disk, so walking over one holds a row at a time as a stream does.
        found = rows if isinstance(rows, IterableDataset) else iter(rows)
        for number, row in enumerate(found, 1):
            yield Line(where, number, _row(row))
    except (DatasetNotFoundError, OSError, ValueError, ConnectionError) as error:
        raise DataError(
            where,
            f"the dataset cannot be read: {str(error).splitlines()[0]}",
            field="calibrate.sources",
            remedy="Name a folder that `datasets` saved, or a dataset on the hub that this machine can reach.",
        ) from None


_JSON_COLUMNS = ("messages", "tools", "request", "response", "choices")


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row as JSON would have it: without the nulls that fill a struct's other keys, and with columns that
    are JSON text (the only way to keep a tool's arguments as they were) as what they say."""
    made: dict[str, Any] = _without_nulls(row)
    for name in _JSON_COLUMNS:
        if isinstance(made.get(name), str):
            try:
                made[name] = json.loads(made[name])
            except json.JSONDecodeError:
                continue  # the check of the record names the column
    return made


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value
