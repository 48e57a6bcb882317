"""Where a task's items come from: the `items` key of a task file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from evals.bfcl import bfcl_rows
from evals.rows import Rows, dataset_rows, jsonl_rows, parquet_rows
from evals.tool_counts import sweep
from sqtool.errors import DataError
from sqtool.spec import Spec

KINDS = ("file", "dataset", "bfcl")
ONLY_WITH = {
    "name": "dataset",
    "split": "dataset",
    "revision": "dataset",
    "answers": "bfcl",
    "base_items": "tool_counts",
}


class ItemSource(Spec):
    """A file, a data set of the library `datasets`, or a BFCL file. Paths are relative to the project root or to the
    task file."""

    file: str | None = Field(default=None, description="JSONL, or Parquet where the name ends in .parquet.")
    dataset: str | None = Field(
        default=None,
        description="A folder that `save_to_disk` wrote, a folder of data files, or a data set's name on the hub.",
    )
    name: str | None = Field(default=None, description="The data set's configuration.")
    split: str | None = Field(default=None, description="The data set's split; needed where it has several.")
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="The commit (40 hex digits) of a data set on the hub, so that its content is fixed.",
    )
    bfcl: str | None = Field(default=None, description="A question file of the Berkeley Function Calling Leaderboard.")
    answers: str | None = Field(default=None, description="BFCL's file of possible answers to `bfcl`.")
    tool_counts: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        default=None,
        min_length=2,
        description="Ask each request that needs one tool with so many tools on offer, such as [1, 2, 4, 8, 16].",
    )
    base_items: int | None = Field(
        default=None, gt=0, description="With `tool_counts`: requests that are taken, evenly spread; default: all."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> ItemSource:
        given = [key for key in KINDS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}")
        for key, needed in ONLY_WITH.items():
            if getattr(self, key) is not None and getattr(self, needed) is None:
                raise ValueError(f"`{key}` goes with `{needed}`")
        if self.tool_counts is not None and len(set(self.tool_counts)) < len(self.tool_counts):
            raise ValueError("a count in `tool_counts` is there twice")
        return self


def place(name: str, root: Path, beside: Path) -> Path:
    """A path relative to the root or to the task file's folder, whichever exists; the first if none does."""
    return next((p for p in (root / name, beside / name) if p.exists()), root / name)


def _folder(source: ItemSource, root: Path, beside: Path) -> Path | None:
    """The local folder of a data set; None for one on the hub."""
    assert source.dataset is not None
    folder = place(source.dataset, root, beside)
    return folder if folder.is_dir() else None


def source_files(source: ItemSource, task: Path, root: Path) -> list[Path]:
    """The files that the items are read from, all of which exist; `DataError` names the first that does not.

    A data set on the hub has none: its name and revision say what it holds.
    """
    if source.dataset is not None:
        folder = _folder(source, root, task.parent)
        if folder is not None:
            return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        if source.revision is None:
            looked = root / source.dataset
            raise DataError(
                task,
                f"no such folder: {looked}, and a data set on the hub needs `revision`",
                field="items.dataset",
                remedy="Give `revision: COMMIT`: without it the same task could ask other items tomorrow.",
            )
        return []
    found = []
    for key in ("file", "bfcl", "answers"):
        name = getattr(source, key)
        if name is None:
            continue
        path = place(name, root, task.parent)
        if not path.is_file():
            raise DataError(
                task,
                f"no such file: {path}",
                field="items" if key == "file" else f"items.{key}",
                remedy="Paths in a task file are relative to the project root or to the task file.",
            )
        found.append(path)
    return found


def open_rows(source: ItemSource, task: Path, root: Path) -> Rows:
    """The rows of a source; `DataError` where a file or folder is missing."""
    files: Iterator[Path] = iter(source_files(source, task, root))
    if source.dataset is not None:
        rows = dataset_rows(
            source.dataset,
            folder=_folder(source, root, task.parent),
            name=source.name,
            split=source.split,
            revision=source.revision,
        )
    elif source.bfcl is not None:
        rows = bfcl_rows(next(files), next(files, None))
    else:
        path = next(files)
        rows = parquet_rows(path) if path.suffix == ".parquet" else jsonl_rows(path)
    return rows if source.tool_counts is None else sweep(rows, source.tool_counts, source.base_items)
