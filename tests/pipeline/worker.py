"""A process that runs the fake pipeline: `python -m tests.pipeline.worker ROOT NAME FILES [wait]`.

What it does appears on its standard output, line by line, so that a test acts at a moment that it saw.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqtool.errors import SqtoolError
from sqtool.pipeline import run
from sqtool.progress import SILENT, Task
from tests.pipeline.fakes import STAGES, FakeSpec, make_job


class Told:
    """Progress that tells the parent process."""

    def note(self, text: str) -> None:
        print(text, flush=True)

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        with SILENT.task(description, total) as task:
            yield task


def main() -> int:
    root, name, files = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    spec = FakeSpec(text="a", files=files)
    job = make_job(root, name, **{stage.name: spec for stage in STAGES})
    try:
        return run(job, stages=STAGES, wait="wait" in sys.argv[4:], progress=Told()).exit_code
    except SqtoolError as error:
        print(error.message, error.remedy, sep="\n", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
