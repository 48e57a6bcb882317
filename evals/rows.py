"""Rows of data files, read one after the other: JSONL, Parquet, `datasets`. Only a batch is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqtool.errors import DataError, did_you_mean
from sqtool.files import read_jsonl

BATCH_ROWS = 256
Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows that can be read more than once. `read` gives (1-based number, row); the number is that of the line in a
    text file (`by_line`), else of the row."""

    path: Path
    """What errors name."""
    read: Callable[[], Iterator[tuple[int, Row]]]
    count: Callable[[], int]
    """How many rows `read` gives."""
    by_line: bool = True

    def error(self, number: int, field: str, message: str, remedy: str = "") -> DataError:
        """The error of one row."""
        if self.by_line:
            return DataError(self.path, message, line=number, field=field, remedy=remedy)
        return DataError(f"{self.path} (row {number})", message, field=field, remedy=remedy)


def jsonl_rows(path: Path) -> Rows:
    """One JSON object a line; empty lines are no rows."""

    def count() -> int:
        try:
            with path.open("rb") as handle:
                return sum(1 for line in handle if line.strip())
        except FileNotFoundError:
            raise DataError(path, "no such file") from None

    return Rows(path, lambda: read_jsonl(path), count)


def parquet_rows(path: Path) -> Rows:
    """The rows of a Parquet file; a null inside a struct counts as an absent key, for Arrow has no other way."""

    @contextmanager
    def opened() -> Iterator[Any]:
        import pyarrow
        from pyarrow import parquet

        try:
            # Buffering ahead would hold a whole row group, which is often the whole file.
            with parquet.ParquetFile(path, pre_buffer=False) as file:
                yield file
        except FileNotFoundError:
            raise DataError(path, "no such file") from None
        except pyarrow.ArrowException as error:
            raise DataError(path, f"not a readable Parquet file: {error}") from None

    def read() -> Iterator[tuple[int, Row]]:
        number = 0
        with opened() as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _dense_row(row)

    def count() -> int:
        with opened() as file:
            return int(file.metadata.num_rows)

    return Rows(path, read, count, by_line=False)


def dataset_rows(
    source: str, *, folder: Path | None, name: str | None = None, split: str | None = None, revision: str | None = None
) -> Rows:
    """The rows of a data set of the library `datasets`: a local `folder` (one that `save_to_disk` wrote, or one of
    data files), or the hub's data set `source` at `revision`. Media are not decoded."""

    def load() -> Any:
        return _load(source, folder, name, split, revision)

    def read() -> Iterator[tuple[int, Row]]:
        number = 0
        for table in load().with_format("arrow").iter(batch_size=BATCH_ROWS):
            for row in table.to_pylist():
                number += 1
                yield number, _dense_row(row)

    return Rows(folder or Path(source), read, lambda: len(load()), by_line=False)


def _load(source: str, folder: Path | None, name: str | None, split: str | None, revision: str | None) -> Any:
    import datasets

    from evals.quiet import quiet

    try:
        with quiet():
            if folder is None:
                found = datasets.load_dataset(source, name, revision=revision)
            elif (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                found = datasets.load_from_disk(str(folder))
            else:
                found = datasets.load_dataset(str(folder), name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        where = folder or source
        remedy = "" if folder else "Without a network, save the data set with save_to_disk and name its folder."
        raise DataError(where, f"not a data set that `datasets` can load: {error}", remedy=remedy) from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    splits = list(found)
    if split is None and len(splits) == 1:
        return found[splits[0]]
    if split not in splits:
        message = f"no split {split!r}; {did_you_mean(split, splits)}" if split else "several splits: name one"
        remedy = "" if split else f"It has {', '.join(splits)}."
        raise DataError(folder or source, message, field="items.split", remedy=remedy)
    return found[split]


def _dense_row(row: Row) -> Row:
    """The row with its columns, and without the nulls inside them that stand for absent keys."""
    return {key: _dense(value) for key, value in row.items()}


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dense(inner) for key, inner in value.items() if inner is not None}
    return [_dense(inner) for inner in value] if isinstance(value, list) else value
