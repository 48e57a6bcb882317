"""safetensors files and their index: valid ones with a few things wrong; the library must agree on what is valid."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.reliability.fuzzing import ACCEPTED, Ending, escaped, refusal
from sqtool.errors import SqtoolError

DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
ODD = st.sampled_from(
    (
        None, True, -1, 0, 1, 2**31, 2**63,
        2**64, 10**30, 0.5, 1e300, "", "F32", "F33", "x" * 500, [], [0], [1, 2], [2, 1],
        [-1, 4], [0, 2**63], [[1]], {}, {"a": 1}, ["a", "b"], [True, True], [0, 1, 2],
    )
)  # fmt: skip
NAMES = ("a", "b.weight", "../x", "", "é", "\x00", "x" * 3000, "__metadata__", "a" * 80)
FILES: tuple[Any, ...] = (
    "../../etc/passwd", "/etc/passwd", "..", "a/b.safetensors", "model.bin", "", "model.safetensors\x00", None, 1, [],
    "model.safetensors/", "./model.safetensors", "~/x.safetensors", ".hidden.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The bytes of model.safetensors, and of its index where there is one."""

    weights: bytes
    index: bytes | None


@st.composite
def cases(draw: Any) -> Case:
    """A checkpoint of one file with up to three changes."""
    header: dict[str, Any] = {}
    end = 0
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = DTYPES[dtype]
        for side in shape:
            size *= side
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    names = list(header)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(("field", "drop", "shift", "name", "entry", "more")))
        entry = header.get(name)
        if not isinstance(entry, dict):
            continue
        if kind == "field":
            entry[draw(st.sampled_from(("dtype", "shape", "data_offsets", "further")))] = copy.deepcopy(draw(ODD))
        elif kind == "drop" and entry:
            entry.pop(draw(st.sampled_from(sorted(entry))))
        elif kind == "shift" and isinstance(entry.get("data_offsets"), list):
            by = draw(st.integers(-4, 4))
            entry["data_offsets"] = [o + by if isinstance(o, int) else o for o in entry["data_offsets"]]
        elif kind == "name":
            header[draw(st.sampled_from(NAMES))] = header.pop(name)
        elif kind == "entry":
            header[name] = copy.deepcopy(draw(ODD))
        else:
            header["more"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    text = json.dumps(header).encode()
    damage = draw(st.integers(0, 7))
    if damage == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from((b"\xff", b"{", b"]", b"", b'"', b"[" * 5000))) + text[at + 1 :]
    elif damage == 1:  # a name twice
        text = text[:-1] + b', "t0": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'
    length = len(text)
    if damage == 2:
        length = draw(st.sampled_from((0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1)))
    weights = struct.pack("<Q", length) + text + b"\x00" * end
    if damage == 3:
        weights = weights[: draw(st.integers(0, len(weights)))]
    elif damage == 4:
        weights += b"\x00" * draw(st.integers(1, 9))
    index = None
    if draw(st.integers(0, 2)) == 0:
        places: Any = dict.fromkeys(names, "model.safetensors")
        if draw(st.booleans()):
            places[draw(st.sampled_from((*names, "t9")))] = draw(st.sampled_from(FILES))
        whole = draw(st.sampled_from(({"weight_map": places}, {"weight_map": places}, places, [], {"weight_map": []})))
        index = json.dumps(whole).encode()
        if draw(st.integers(0, 4)) == 0:
            index = index[: draw(st.integers(0, len(index)))]
    return Case(weights, index)


def attempt(case: Case, folder: Path) -> Ending:
    """Read the checkpoint. What is accepted must be accepted by the safetensors library too: our check comes first."""
    from quantize.headers import INDEX
    from quantize.vetting import check_model

    path = folder / "model.safetensors"
    path.write_bytes(case.weights)
    (folder / INDEX).unlink(missing_ok=True)
    if case.index is not None:
        (folder / INDEX).write_bytes(case.index)
    try:
        check_model(folder)
    except SqtoolError as error:
        return refusal(error, "headers")
    except Exception as error:  # noqa: BLE001 - finding these is what it is for
        return escaped(error, "headers")
    return _agrees(path)


def _agrees(path: Path) -> Ending:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            opened.keys()
    except SafetensorError as error:
        return Ending("headers: accepted", f"safetensors refuses it: {error}")
    return Ending(ACCEPTED)
