"""The stage's files: what is read, and that a fault names file, line and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import DataError
from sqtool.speculate.counters import Speculation
from sqtool.speculate.reading import read_stage
from tests.unit.speculate.synthetic import Settings, Truth, write_stage

ARM = "arms/both"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arms = {"both": Truth("quantized", accept=0.5), "extra": Truth("quantized"), "quantized": Truth("quantized")}
    return write_stage(tmp_path, Settings(arms=arms, requests=30, block=15))


def edit(path: Path, change: Callable[[dict[str, Any]], object], line: int = 0) -> None:
    """Change one line of a JSON Lines file, or the object of a JSON file."""
    lines = path.read_text().splitlines()
    value = json.loads(lines[line])
    change(value)
    lines[line] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")


def test_what_is_read(folder: Path) -> None:
    (folder / ARM / "quality").mkdir()
    records = [{"id": str(i), "task": "calls", "scores": {"exact": i % 2 == 0, "note": None}} for i in range(4)]
    (folder / ARM / "quality" / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / ARM / "probe.json").write_text('{"cancelled": 4}')
    stage = read_stage(folder)
    assert list(stage.arms) == ["quantized", "both", "extra"], "the four first, then as planned"
    assert (len(stage.traffic), stage.warmup, stage.loads) == (30, 1, ["c8"])
    both = stage.arms["both"]
    assert both.quality == {"calls/exact": 0.5}
    assert both.probe == {"cancelled": 4}
    assert [row.id for row in both.requests] == sorted(stage.traffic)
    assert isinstance(both.blocks[0].speculation, Speculation)
    assert stage.sibling("both") == "quantized"
    assert stage.sibling("extra") is None


def test_loads_of_a_plan_may_be_objects(folder: Path) -> None:
    edit(folder / "plan.json", lambda plan: plan.update(loads=[{"name": "c8"}, {"name": "r4"}]))
    assert read_stage(folder).loads == ["c8"]


def test_an_arm_without_its_last_file_is_not_there(folder: Path) -> None:
    (folder / ARM / "arm.json").unlink()
    assert list(read_stage(folder).arms) == ["quantized", "extra"]
    for path in folder.glob("arms/*/arm.json"):
        path.unlink()
    with pytest.raises(DataError, match="holds no complete arm"):
        read_stage(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("requests.jsonl", lambda v: v.update(ttft_s="fast"), r"requests\.jsonl:1: ttft_s: Expected `float \| null`"),
        ("requests.jsonl", lambda v: v.pop("load"), r"requests\.jsonl:1: .*missing required field `load`"),
        ("requests.jsonl", lambda v: v.update(id="other"), r":1: id: 'other' is not in the frozen traffic"),
        ("requests.jsonl", lambda v: v.update(id="r0001"), r":2: id: 'r0001' occurs twice in one round of c8"),
        ("requests.jsonl", lambda v: v.update(block=9), r"no line for load c8, round 0, block 9"),
        ("blocks.jsonl", lambda v: v.update(seconds=0), r"blocks\.jsonl:1: seconds: must be positive, found 0"),
        ("blocks.jsonl", lambda v: v["counters"]["speculation"].pop("drafts"), r":1: counters\.speculation: .*drafts"),
        ("arm.json", lambda v: v.update(target="small"), r"arm\.json: target: must be 'baseline' or 'quantized'"),
        ("../../traffic.jsonl", lambda v: v.pop("kind"), r"traffic\.jsonl:1: .*`kind`"),
    ],
)  # fmt: skip
def test_faults(folder: Path, file: str, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit((folder / ARM / file).resolve(), change)
    with pytest.raises(DataError, match=message):
        read_stage(folder)


def test_files_that_are_empty_or_not_what_they_should_be(folder: Path) -> None:
    quality = folder / ARM / "quality"
    quality.mkdir()
    (quality / "records.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl:1: scores: must be an object"):
        read_stage(folder)
    (quality / "records.jsonl").unlink()
    (folder / ARM / "requests.jsonl").write_text("")
    with pytest.raises(DataError, match=r"requests\.jsonl: holds no request"):
        read_stage(folder)
    (folder / "plan.json").write_text("[]")
    with pytest.raises(DataError, match=r"plan\.json: must be an object"):
        read_stage(folder)
    (folder / "traffic.jsonl").write_text('{"id": "w", "kind": "k", "block": -1}\n')
    with pytest.raises(DataError, match=r"traffic\.jsonl: block: holds no measured request"):
        read_stage(folder)
