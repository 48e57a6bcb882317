"""Ways to get unmeasured bytes, or a failed candidate, released; each must be noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import DataError, InconclusiveError, SqtoolError
from sqtool.files import digest_folder, write_json
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from sqtool.release import manifest as manifest_module
from sqtool.release.manifest import MANIFEST, verify_manifest

from .conftest import Case, make_case, write_records


def refused(case: Case, error: type[SqtoolError], match: str, **changes: Any) -> None:
    with pytest.raises(error, match=match):
        case.publish(**changes)
    assert case.visible() == []
    assert not case.hidden()


@pytest.fixture
def failed(tmp_path: Path) -> Case:
    """A candidate that regressed."""
    return make_case(tmp_path, wrong=80)


def test_outcome_edited_to_pass(failed: Case) -> None:
    failed.edit_verdict(lambda v: v.update(outcome="PASS"))
    refused(failed, DataError, "contradicts itself.*its metrics say REGRESSED")


def test_metric_edited_to_pass_too(failed: Case) -> None:
    def change(v: dict[str, Any]) -> None:
        v.update(outcome="PASS", reasons=[])
        v["metrics"][0]["outcome"] = "PASS"

    failed.edit_verdict(change)
    refused(failed, DataError, "lower bound is past the margin")


def test_bound_edited(failed: Case) -> None:
    def change(v: dict[str, Any]) -> None:
        v.update(outcome="PASS", reasons=[])
        v["metrics"][0].update(outcome="PASS", lower=-0.001, upper=0.001)

    failed.edit_verdict(change)
    refused(failed, DataError, "outside its interval")


def test_margin_edited(failed: Case) -> None:
    def change(v: dict[str, Any]) -> None:
        v.update(outcome="PASS", reasons=[])
        v["metrics"][0].update(outcome="PASS", margin=0.9)

    failed.edit_verdict(change)
    refused(failed, DataError, "the margin is 0.9, its spec says 0.02")


def test_metric_made_diagnostic(failed: Case) -> None:
    def change(v: dict[str, Any]) -> None:
        v.update(outcome="PASS", reasons=[])
        v["metrics"][0]["gated"] = False

    failed.edit_verdict(change)
    refused(failed, DataError, "not those of its spec")


def test_inconclusive_allowed_afterwards(tmp_path: Path) -> None:
    case = make_case(tmp_path, wrong=3, items=60)
    case.edit_verdict(lambda v: v.update(inconclusive="allow"))
    refused(case, DataError, "differ from its spec")


def test_consistently_forged_verdict_is_caught_by_judging_again(failed: Case) -> None:
    def change(v: dict[str, Any]) -> None:
        v.update(outcome="PASS", reasons=[])
        v["metrics"][0].update(outcome="PASS", candidate=1.0, difference=0.0, lower=-0.001, upper=0.001)

    failed.edit_verdict(change)
    refused(failed, DataError, "not what the gate computes", records=failed.records)


def test_true_verdict_survives_judging_again(case: Case) -> None:
    place = case.root / case.publish(records=case.records)["path"]
    assert json.loads((place / MANIFEST).read_text())["verdict"]["computed_again"] is True


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"outcome": "PASS"}', "PASS", "\xff"])
def test_not_a_verdict(case: Case, text: str) -> None:
    case.verdict.write_text(text, encoding="latin-1")
    refused(case, DataError, "is no verdict|not UTF-8")


def test_verdict_of_another_schema(case: Case) -> None:
    case.edit_verdict(lambda v: v.update(schema="sqtool.verdict/99"))
    refused(case, DataError, "schema")


def test_verdict_that_names_no_checkpoint(case: Case) -> None:
    case.edit_verdict(lambda v: v.update(bindings={}))
    refused(case, DataError, "which checkpoint was measured")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "extra/part.bin"])
def test_file_swapped_after_the_measurement(case: Case, name: str) -> None:
    data = bytearray((case.checkpoint / name).read_bytes())
    data[0] ^= 1
    (case.checkpoint / name).write_bytes(data)
    refused(case, DataError, "not the checkpoint that was measured")


def test_file_added_removed_or_renamed_after_the_measurement(case: Case) -> None:
    (case.checkpoint / "generation_config.json").write_text("{}")
    refused(case, DataError, "not the checkpoint that was measured")
    (case.checkpoint / "generation_config.json").unlink()
    (case.checkpoint / "tokenizer.json").rename(case.checkpoint / "tokenizer2.json")
    refused(case, DataError, "not the checkpoint that was measured")


def test_file_swapped_while_it_is_copied(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # The digest was right when the publication began; what counts is what was copied.
    copy = manifest_module.copy_file

    def swap_then_copy(source: Path, target: Path) -> manifest_module.Entry:
        if source.name == "model.safetensors":
            source.write_bytes(b"other weights")
        return copy(source, target)

    monkeypatch.setattr("sqtool.release.publish.copy_file", swap_then_copy)
    refused(case, DataError, "not the checkpoint that was measured")


DIFFERS = {"file": "generation_config.json", "field": "temperature", "baseline": "missing", "candidate": "0.6"}


def test_difference_beside_the_weights_that_was_struck_out(case: Case) -> None:
    """The evaluation knows what it found, whatever the verdict says."""
    write_json(case.root / "result.json", {"summary": {"differences": [DIFFERS]}})
    refused(case, DataError, "not what the gate computes", records=case.records)


def test_difference_that_is_said_to_be_allowed(case: Case) -> None:
    case.edit_verdict(lambda v: v.update(differences=[{**DIFFERS, "allowed": True}]))
    refused(case, DataError, "does not say whether generation_config.json:temperature may differ")
    case.edit_verdict(lambda v: v.update(differences=[{**DIFFERS, "allowed": False}]))
    refused(case, DataError, "the outcome is PASS, its metrics say REGRESSED")


def rebind(case: Case) -> None:
    case.edit_verdict(lambda v: v["bindings"].update(candidate_digest=digest_folder(case.checkpoint)))


def test_link_that_leaves_the_checkpoint(case: Case, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("token")
    (case.checkpoint / "notes.txt").symlink_to(secret)
    rebind(case)
    refused(case, DataError, "leaves the checkpoint")


def test_linked_folder(case: Case, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (case.checkpoint / "more").symlink_to(tmp_path / "outside")
    refused(case, DataError, "leaves the checkpoint")
    (case.checkpoint / "more").unlink()
    (case.checkpoint / "more").symlink_to("extra")
    refused(case, DataError, "no file")


def test_dangling_link_and_pipe(case: Case) -> None:
    (case.checkpoint / "gone").symlink_to("nowhere")
    refused(case, DataError, "no file")
    (case.checkpoint / "gone").unlink()
    os.mkfifo(case.checkpoint / "pipe")
    refused(case, DataError, "no regular file")


def test_links_inside_and_into_a_hub_cache_are_published_as_files(case: Case) -> None:
    hub = case.root / "hub" / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in case.checkpoint.iterdir():
        if path.is_file():
            path.rename(hub / "blobs" / path.name)
            (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    (snapshot / "copy.json").symlink_to("config.json")
    case.checkpoint = snapshot
    rebind(case)
    place = case.root / case.publish()["path"]
    assert verify_manifest(place) == []
    assert not any(p.is_symlink() for p in place.rglob("*"))


def test_hidden_files_were_not_measured_and_are_not_published(case: Case) -> None:
    (case.checkpoint / ".cache").mkdir()
    (case.checkpoint / ".cache" / "token").write_text("x")
    (case.checkpoint / ".gitattributes").write_text("x")
    place = case.root / case.publish()["path"]
    assert not list(place.rglob(".*"))


def test_weights_and_manifest_changed_together(case: Case) -> None:
    place = case.root / case.publish()["path"]
    (place / "tokenizer.json").write_text('{"x": 1}')
    manifest = json.loads((place / MANIFEST).read_text())
    entry = manifest_module.Entry(manifest_module.hashlib.sha256(b'{"x": 1}').hexdigest(), 8)
    manifest["files"]["tokenizer.json"] = {"sha256": entry.sha256, "size": entry.size}
    (place / MANIFEST).write_text(json.dumps(manifest))
    assert any("the checkpoint's digest is" in p for p in verify_manifest(place))
    assert any("was given for the checkpoint" in p for p in verify_manifest(place))


def test_a_regression_behind_an_unsteady_engine_is_not_released_by_allow(tmp_path: Path) -> None:
    case = make_case(tmp_path, wrong=400, gate={"inconclusive": "allow"})
    control = write_records(tmp_path / "control", [0] * 12 + [1] * 388)
    path = control / "recall.jsonl"
    path.write_text(path.read_text().replace('"scores"', '"output": {"text": "other"}, "scores"'))
    spec = GateSpec(metrics={"recall.exact_match": 0.02}, inconclusive="allow")  # type: ignore[dict-item]
    bindings = json.loads(case.verdict.read_text())["bindings"]
    baseline, candidate, _ = case.records
    verdict = judge(spec, baseline, candidate, control=control, bindings=bindings)
    assert (verdict.outcome, verdict.metrics[0].outcome) == ("INCONCLUSIVE", "REGRESSED")
    case.verdict.write_text(verdict.to_json())
    refused(case, InconclusiveError, "unstable_engine", records=(baseline, candidate, control))
    refused(case, InconclusiveError, "unstable_engine")
