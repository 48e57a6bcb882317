"""Records and data (JSON lines): rows of the right shape with values of the wrong one, and damaged bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.reliability.fuzzing import ACCEPTED, Ending, escaped, refusal
from benchmarks.reliability.fuzzing.trees import places
from sqtool.errors import SqtoolError

ROW = {
    "task": "recall",
    "id": "i1",
    "kind": "lookup",
    "cluster": None,
    "fields": {"n": 1},
    "scores": {"exact_match": 1.0, "gen_len": 0.5},
    "failure": None,
    "detail": "",
    "output": {"text": "x", "tool_calls": [], "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2},
    "expected": {"text": "x"},
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
}
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=8), st.just("x" * 9000),
    st.sampled_from(("\x1b[2J", "\u202e", "</script>", "../x", "\x00", -1, 2, {}, [], [[]], {"a": {"b": []}})),
    st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda s: st.lists(s, max_size=3), max_leaves=5),
)  # fmt: skip
RAW = (
    b"", b"null", b"[]", b"{", b"}", b'"x"', b"NaN", b'{"id": NaN}', b"\xff\xfe", b"\x00\x00", b'{"id": "\\ud800"}',
    b"[" * 4000, b'{"a":' * 4000, b"1" * 9000, b'{"id": 1e999}', b"\xef\xbb\xbf{}", b'{"id":"i1","id":"i2"}', b"\xc3(",
    b'{"scores": {"a": 1e400}}', b"-", b"\t\t", b"\r",
)  # fmt: skip


@st.composite
def cases(draw: Any) -> bytes:
    """The bytes of a JSON lines file with one to four rows, of which at least one is changed."""
    lines = []
    for number in range(draw(st.integers(1, 4))):
        row = json.loads(json.dumps({**ROW, "id": f"i{number}"}))
        for _ in range(draw(st.integers(0, 2))):
            holder, key = draw(st.sampled_from(range(len(places(row)))).map(places(row).__getitem__))
            if draw(st.booleans()):
                holder[key] = copy.deepcopy(draw(ODD))
            else:
                del holder[key]
        line = json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
        if draw(st.integers(0, 3)) == 0:
            at = draw(st.integers(0, len(line)))
            line = draw(st.sampled_from((line[:at], line[:at] + b"\xff" + line[at:], draw(st.sampled_from(RAW)))))
        lines.append(line)
    whole: bytes = b"\n".join(lines) + draw(st.sampled_from((b"", b"\n", b"\n\n", b"\r\n")))
    return whole


def _readers() -> dict[str, Callable[[Path], Any]]:
    from calibrate.conversation import as_record
    from calibrate.sources import read_lines
    from evals.items import load_items
    from evals.records import read_part
    from evals.rows import jsonl_rows
    from sqtool.files import read_jsonl
    from sqtool.gate.records import load
    from sqtool.speculate.requestlog import load_requests

    def calibration(path: Path) -> None:
        for line in read_lines(path):
            if isinstance(line.value, SqtoolError):
                raise line.value
            try:
                as_record(line.value)
            except ValueError:
                continue  # the record is left out, and counted

    return {
        "gate": lambda path: load(path, with_fields=True),
        "lines": lambda path: list(read_jsonl(path)),
        "items": lambda path: load_items(jsonl_rows(path)),
        "answers so far": lambda path: read_part(path, "key", ()),
        "calibration": calibration,
        "traffic": lambda path: load_requests(path, 16),
    }


READERS = _readers()


def attempt(data: bytes, folder: Path) -> Ending:
    """Read `data` with every reader of JSON lines; the first fault, else how the gate's reader ended."""
    path = folder / "records.jsonl"
    path.write_bytes(data)
    endings = []
    for name, read in READERS.items():
        try:
            read(path)
        except SqtoolError as error:
            endings.append(refusal(error, name))
        except Exception as error:  # noqa: BLE001 - finding these is what it is for
            endings.append(escaped(error, name))
        else:
            endings.append(Ending(ACCEPTED))
    return next((ending for ending in endings if ending.fault), endings[0])
