"""Logs of production come from many hands: whoever writes a line of one must not fool, crash or fill the reader."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sqtool.cli import call
from sqtool.errors import DataError, SqtoolError
from sqtool.rollout import Rules, read_rollout, reading
from sqtool.speculate.requestlog import load_requests

GOOD = b'{"arm": "baseline", "timestamp": 1, "corrected": true}'
Write = Callable[[Sequence[bytes]], Path]


def line(**values: Any) -> bytes:
    return json.dumps({"arm": "w4a16", "timestamp": 2, "corrected": False, **values}).encode()


def gateway(**values: Any) -> bytes:
    return json.dumps({"model": "m", "metadata": {"arm": "w4a16"}, "startTime": 2, **values}).encode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(lines: Sequence[bytes]) -> Path:
        path = tmp_path / "log.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return put


@pytest.mark.parametrize(
    "bad",
    [
        line(price=1e308), line(e2e_ms=1e308), line(prompt_tokens=1e200), line(timestamp=1e300), line(ttft_ms="1e999"),
        line(output_tokens="9" * 5000), b'{"arm": "w4a16", "timestamp": 2, "price": 1' + b"0" * 400 + b"}",
        b'{"arm": 1' + b"0" * 5000 + b', "timestamp": 2}', b'{"arm": "w4a16", "timestamp": NaN}',
        b'{"arm": "w4a16", "timestamp": 2, "price": 1e999}', line(x=[[]])[:-4] + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"arm": "\\ud800", "timestamp": 2}', line(kind=b"\\ud800".decode("unicode_escape")),
        line(arm="x\nNO_HARM: w4a16"), line(arm="\x1b[2J"), line(arm="a\u202eb"), line(arm="x" * 10_000),
        line(kind="x\nHARM: w4a16"), line(corrected="9" * 5000), line(timestamp="0000-99-99"), b"\x00\x01",
    ],
)  # fmt: skip
def test_a_hostile_line_is_one_error_with_its_place(bad: bytes, write: Write) -> None:
    path = write([GOOD, bad, GOOD])
    with pytest.raises(DataError) as caught:
        read_rollout([str(path)], Rules())
    assert f"{path}:2" in caught.value.message
    assert len(caught.value.message) < 700 + len(str(path))


@pytest.mark.parametrize("status", ["²", "9" * 5000, "٤٠٤", -1, 1e308, [], {"a": []}, "\x1b[2J", True])
def test_odd_statuses_of_a_gateway_are_no_faults(status: Any, write: Write) -> None:
    lines = [gateway(status=status), gateway(metadata={"arm": "baseline"})]
    assert read_rollout([str(write(lines))], Rules()).outcome == "KEEP_WATCHING"


def test_sums_of_the_largest_numbers_are_numbers(write: Write) -> None:
    most = dict.fromkeys(("price", "prompt_tokens", "output_tokens", "device_seconds", "e2e_ms", "ttft_ms"), 1e15)
    lines = [line(arm=arm, accepted=True, cluster=f"u{n}", **most) for arm in ("baseline", "w4a16") for n in range(60)]
    lines += [line(arm=arm, price=0, prompt_tokens=0, device_seconds=0) for arm in ("baseline", "w4a16")]
    result = read_rollout([str(write(lines))], Rules(), price_per_hour=1e6)
    json.dumps(result.to_dict(), allow_nan=False)


def test_nothing_in_a_log_writes_a_line_of_its_own(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write([GOOD, line(**{"evil\nHARM: everything\x1b[31m": 1, "k" * 5000: 1})])
    assert call(["rollout", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert not any(text.startswith("HARM") for text in printed.splitlines())
    assert max(len(text) for text in printed.splitlines()) < 500
    assert call(["rollout", str(path), "--json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out)["outcome"] == "KEEP_WATCHING"
    assert call(["rollout", str(write([GOOD, line(arm="x\nNO_HARM: w4a16\x1b[2J")]))]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert not any(text.startswith("NO_HARM") for text in err.splitlines())


def test_new_keys_in_every_line_do_not_fill_the_memory(write: Write) -> None:
    lines = [line(**{f"key{n}-{m}": 1 for m in range(100)}) for n in range(200)]
    began = time.process_time()
    result = read_rollout([str(write([GOOD, *lines]))], Rules())
    assert len(result.source.ignored) <= 1000
    assert time.process_time() - began < 20


@pytest.mark.parametrize("inner", [b" " * (1 << 20), b'{"arm": "' + b"x" * (1 << 20)])
def test_a_line_without_an_end_is_not_held(inner: bytes, tmp_path: Path) -> None:
    """2 GiB in 2 MB of gzip, in a process that may use 1 GiB."""
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as handle:
        handle.write(GOOD + b"\n")
        for _ in range(256):
            handle.write(inner)
    code = (
        "import resource, sys\n"
        "from sqtool.rollout import Rules, read_rollout\n"
        "from sqtool.errors import DataError\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_rollout([sys.argv[1]], Rules())\n"
        "except DataError as error: print(error.message)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bomb)], capture_output=True, text=True, check=True, timeout=120
    )
    message, more = done.stdout.splitlines()
    assert "longer than 64 MiB" in message
    assert int(more) < 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_a_gzip_bomb_of_empty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "UNPACKED_FREE", 1 << 20)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(GOOD + b"\n" + b"\n" * (8 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 400 times its size") as caught:
        read_rollout([str(bomb)], Rules())
    assert caught.value.remedy
    real = tmp_path / "real.gz"
    rows = [line(cluster=f"u{n}", arm=("baseline", "w4a16")[n % 2], timestamp=n) for n in range(30_000)]
    real.write_bytes(gzip.compress(b"\n".join(rows) + b"\n"))
    assert read_rollout([str(real)], Rules()).source.lines == 30_000


TRAFFIC = '{"messages": [{"role": "user", "content": "x"}]'


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (TRAFFIC + ', "timestamp": 1' + "0" * 400 + "}", "timestamp"),
        (TRAFFIC + ', "timestamp": NaN}', "timestamp"),
        (TRAFFIC + ', "timestamp": -Infinity}', "timestamp"),
        (TRAFFIC + ', "max_tokens": 1' + "0" * 400 + "}", "max_tokens"),
        (TRAFFIC + ', "kind": "a\\nPASS: both"}', "kind"),
        (TRAFFIC + ', "kind": "\\ud800"}', "kind"),
        (TRAFFIC + ', "tools": [NaN]}', "messages"),
        (TRAFFIC.replace("x", "\\ud800") + "}", "messages"),
        ('{"request": "' + "[" * 100_000 + '"}', "request"),
        ("[" * 100_000, ""),
    ],
)
def test_traffic_of_strangers(text: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text(TRAFFIC + "}\n" + text + "\n")
    with pytest.raises(SqtoolError) as caught:
        load_requests(path, 16)
    assert f"{path}:2" in caught.value.message
    assert field in caught.value.message
