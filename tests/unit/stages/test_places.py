"""Where a project, its models and its drafter lie on somebody's machine goes into no release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.spec import EngineSpec
from sqtool.files import read_json, write_json
from sqtool.gate.spec import GateSpec
from sqtool.progress import SILENT
from sqtool.release.spec import ReleaseSpec
from sqtool.speculate.run import speculate
from sqtool.speculate.spec import SpeculateSpec
from sqtool.stages import release
from sqtool.stages.contract import Inputs
from sqtool.stages.speculation import Sides, judge_speculation
from tests.unit.release.conftest import RECIPE, make_case
from tests.unit.speculate.conftest import fake

__all__ = ["fake"]

STRANGE = "strange-place-4711"
GATE = GateSpec.model_validate({"metrics": {"recall.exact_match": 0.02}})


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize(("drafter", "shown"), [("project/models/draft", "models/draft"), ("others/draft", "draft")])
def test_a_release_says_nothing_of_where_things_lie(
    fake: Any, tmp_path: Path, drafter: str, shown: str, approved: bool
) -> None:
    root = tmp_path / STRANGE / "project"
    case = make_case(root)
    draft, target = tmp_path / STRANGE / drafter, root / "target"
    for folder in (draft, target):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
    lines = [
        f'{{"id": "r{i}", "kind": "k", "messages": [{{"role": "user", "content": "say {i}"}}]}}' for i in range(12)
    ]
    traffic = tmp_path / STRANGE / "traffic.jsonl"
    traffic.write_text("\n".join(lines) + "\n")
    folders = {name: root / "run" / name for name in ("baseline", "evaluate", "gate", "speculate", "approve")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for name, records in zip(("baseline", "evaluate"), case.records, strict=False):
        assert records is not None
        records.rename(folders[name] / "records")
    case.verdict.rename(folders["gate"] / "verdict.json")

    spec = SpeculateSpec(traffic=str(traffic), requests=8, max_concurrency=(2,), warmup=1, cancellation=None)
    report = speculate(
        spec,
        EngineSpec(kv_cache_memory_bytes=1 << 20),
        baseline=target,
        candidate=case.checkpoint,
        draft=draft,
        root=root,
        out=folders["speculate"],
        progress=SILENT,
        seed=0,
    )
    assert report["speculative_config"]["model"] == shown
    told = [word for server in fake.started for word in server.extra_args]
    assert any(str(draft.resolve()) in word for word in told), "the server itself is told the whole path"
    sides = Sides(folders["baseline"] / "records", folders["evaluate"] / "records")
    verdict = judge_speculation(folders["speculate"], report, GATE, sides, out=folders["approve"])
    write_json(folders["approve"] / "speculation_verdict.json", {**verdict, "approved": approved})

    inputs = Inputs(
        model=target,
        draft=draft,
        seed=0,
        folders=folders,
        root=root,
        candidate=case.checkpoint,
        recipe={"name": "awq4", "text": RECIPE, "model": str(tmp_path / STRANGE / "base"), "resolved": {}},
    )
    out = root / "release.tmp"
    out.mkdir()
    summary = release.run(ReleaseSpec(version="v1"), inputs, out).summary
    place = root / summary["path"]
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {"MANIFEST.json", "README.md", "speculate.json", "speculation_verdict.json"} <= {p.name for p in files}
    assert [str(path.relative_to(place)) for path in files if STRANGE.encode() in path.read_bytes()] == []
    provenance = read_json(place / "MANIFEST.json")["provenance"]
    assert (provenance["model"], provenance["speculation"]["config"]["model"]) == ("base", shown)
    assert (f'"model": "{shown}"' in (place / "README.md").read_text()) is approved
