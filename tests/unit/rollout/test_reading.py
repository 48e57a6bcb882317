"""Files, gzip and pipes; errors with file and line; a log that is being written; order of time."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sqtool.errors import DataError
from sqtool.rollout.reading import Source, records
from tests.unit.rollout.conftest import WriteLog, lines

TWO = {"baseline": 0.05, "b": 0.05}


def read(*names: Path | str) -> tuple[list[str], Source]:
    source = Source(tuple(str(name) for name in names))
    return [record.arm for record in records(source)], source


def test_plain_gzip_and_several_files_are_read_in_order(write_log: WriteLog, tmp_path: Path) -> None:
    first = write_log([{"arm": "a", "timestamp": 1}, "", {"arm": "b", "timestamp": 2}])
    packed = tmp_path / "second.log"  # gzip is seen by content, not by name
    packed.write_bytes(gzip.compress(b'{"arm":"c","timestamp":3}\n'))
    arms, source = read(first, packed)
    assert arms == ["a", "b", "c"]
    assert (source.lines, source.format, source.first, source.last, source.out_of_order) == (3, "sqtool", 1, 3, 0)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'\xef\xbb\xbf{"arm":"a","timestamp":1}\r\n')
    assert read(tmp_path / "log")[0] == ["a"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for content in (b'{"arm":"a","timestamp":1}\n', gzip.compress(b'{"arm":"a","timestamp":1}\n')):
        (tmp_path / "in").write_bytes(content)
        with (tmp_path / "in").open("rb") as handle:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(handle))
            assert read("-")[0] == ["a"]


def test_a_named_pipe_has_no_size(tmp_path: Path) -> None:
    import threading

    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b'{"arm":"a","timestamp":1}\n',))
    writer.start()
    assert read(tmp_path / "pipe")[0] == ["a"]
    writer.join()


@pytest.mark.parametrize(
    ("records_", "message"),
    [
        (['{"arm": "a", "timestamp": 1}', '{"arm": "a"', '{"arm": "a", "timestamp": 1}'], "log.jsonl:2: not JSON: "),
        (["[1]"], "log.jsonl:1: expected a JSON object, found list"),
        ([{"arm": "a", "timestamp": 1}, {"arm": "a"}], "log.jsonl:2: timestamp: missing"),
        ([{"when": 1}], "log.jsonl:1: neither sqtool's format"),
        ([], "log.jsonl: holds no requests"),
        (["", "  "], "log.jsonl: holds no requests"),
    ],
)
def test_errors_name_file_line_and_field(write_log: WriteLog, records_: list[object], message: str) -> None:
    with pytest.raises(DataError) as error:
        read(write_log(records_))
    assert message in error.value.message
    assert error.value.remedy
    assert error.value.exit_code == 2


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"arm": "\xff", "timestamp": 1}\n')
    with pytest.raises(DataError, match=r"log:1: not JSON: .*utf-8"):
        read(tmp_path / "log")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_broken_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"arm":"a","timestamp":1}\n' * 5000)
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="broken gzip"):
        read(tmp_path / "cut.gz")


def test_a_last_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"arm":"a","timestamp":1}\n{"arm":"b","time')
    arms, source = read(path)
    assert (arms, source.incomplete) == (["a"], f"{path}:2")
    path.write_text('{"arm":"a","timestamp":1}\n{"arm":"b","timestamp":2}')
    assert read(path)[0] == ["a", "b"]


def test_times_out_of_order_are_counted(write_log: WriteLog) -> None:
    _, source = read(write_log([{"arm": "a", "timestamp": t} for t in (5, 3, 6, 4.5, 7)]))
    assert (source.out_of_order, source.most_behind, source.first, source.last) == (2, 2, 3, 7)


def test_progress_is_in_bytes_and_complete(write_log: WriteLog) -> None:
    path = write_log(lines(5000, TWO))
    seen: list[float] = []

    class Tally:
        def advance(self, n: float = 1) -> None:
            seen.append(n)

        def describe(self, text: str) -> None:
            raise AssertionError(text)

        @contextmanager
        def task(self, description: str, total: float | None = None) -> Iterator[Tally]:
            assert total == path.stat().st_size
            yield self

        def note(self, text: str) -> None:
            raise AssertionError(text)

    assert len(list(records(Source((str(path),)), progress=Tally()))) == 5000
    assert sum(seen) == path.stat().st_size
    assert len(seen) > 2
