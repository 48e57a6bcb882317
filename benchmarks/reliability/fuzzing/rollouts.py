"""Logs of production, in sqtool's format and a gateway's: rows with values of the wrong kind, and damaged bytes."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.reliability.fuzzing import ACCEPTED, Ending, escaped, refusal
from benchmarks.reliability.fuzzing.trees import change, damaged
from sqtool.errors import SqtoolError

OWN: dict[str, Any] = {
    "arm": "baseline", "timestamp": 1.5, "kind": "chat", "cluster": "u1", "ttft_ms": 20.0, "e2e_ms": 300.0,
    "prompt_tokens": 10, "output_tokens": 20, "failed": False, "cancelled": False, "retried": False,
    "corrected": False, "accepted": True, "device_seconds": 0.2, "price": 0.001,
}  # fmt: skip
GATEWAY: dict[str, Any] = {
    "model": "m", "metadata": {"arm": "baseline", "user_id": "u1"}, "startTime": "2026-11-02T10:00:00Z",
    "endTime": "2026-11-02T10:00:01Z", "completionStartTime": "2026-11-02T10:00:00.2Z", "status": "success",
    "response": {"usage": {"prompt_tokens": 5, "completion_tokens": 7}}, "response_cost": 0.001,
    "request": {"messages": [{"role": "user", "content": "x"}], "user": "u1"},
}  # fmt: skip


@st.composite
def cases(draw: Any) -> bytes:
    """The bytes of a log with two to six requests of both arms, up to three of their values changed."""
    whole = draw(st.sampled_from((OWN, GATEWAY)))
    rows = []
    for number in range(draw(st.integers(2, 6))):
        row = copy.deepcopy(whole)
        (row if whole is OWN else row["metadata"])["arm"] = ("baseline", "w4a16")[number % 2]
        rows.append(row)
    for _ in range(draw(st.integers(0, 3))):
        change(draw, draw(st.sampled_from(rows)))
    lines = [json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass") for row in rows]
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = damaged(draw, lines[at])
    data = b"\n".join(lines) + draw(st.sampled_from((b"\n", b"", b"\r\n")))
    if draw(st.integers(0, 9)) == 0:
        data = gzip.compress(data, 1)
        if draw(st.booleans()):
            data = damaged(draw, data)
    return data


def attempt(data: bytes, folder: Path) -> Ending:
    """Judge the log, and put the result into JSON. An arm's name must not hold what a terminal obeys."""
    from sqtool.rollout import Rules, read_rollout

    path = folder / "log.jsonl"
    path.write_bytes(data)
    try:
        result = read_rollout([str(path)], Rules(), by_kind=True, price_per_hour=2.0)
        json.dumps(result.to_dict(), allow_nan=False)
    except SqtoolError as error:
        return refusal(error, "rollout")
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        return escaped(error, "rollout")
    names = [*result.table, *result.kinds]
    odd = next((name for name in names if not name.isprintable()), None)
    return Ending(ACCEPTED, "" if odd is None else f"the name {odd!r} was accepted")
