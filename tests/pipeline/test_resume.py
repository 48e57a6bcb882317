"""What runs, what is reused, and why."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sqtool.errors import UsageError
from sqtool.files import write_json
from sqtool.pipeline import make_plan, run
from sqtool.pipeline.digest import code_digest
from sqtool.runfolder import CACHE, RESULT, RunFolder, listed, read_result
from tests.pipeline.fakes import STAGES, FakeSpec, calls, make_job

ALL = [stage.name for stage in STAGES]


def again(root: Path) -> None:
    (root / "calls.log").unlink(missing_ok=True)


def whys(root: Path, **sections: FakeSpec) -> dict[str, str]:
    plan = make_plan(make_job(root, **sections), stages=STAGES)
    return {step.stage.name: step.why for step in plan.steps if step.action == "run"}


def test_first_run_runs_all_second_none(tmp_path: Path) -> None:
    first = run(make_job(tmp_path), stages=STAGES)
    assert (first.outcome, first.exit_code) == ("released", 0)
    assert calls(tmp_path) == ALL
    again(tmp_path)
    second = run(make_job(tmp_path), stages=STAGES)
    assert second.exit_code == 0
    assert calls(tmp_path) == []
    assert {record.state for record in second.stages} == {"cached"}
    assert second.results == first.results


def test_a_section_change_rebuilds_it_and_what_needs_it(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    again(tmp_path)
    changed = {"speculate": FakeSpec(text="new")}
    assert whys(tmp_path, **changed) == {
        "speculate": "recipe: speculate.text changed",
        "approve": "speculate runs again",
        "release": "approve runs again; speculate runs again",
    }
    run(make_job(tmp_path, **changed), stages=STAGES)
    assert calls(tmp_path) == ["speculate", "approve", "release"]


def test_model_content_data_content_and_seed(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").write_text("1")
    sections = {"calibrate": FakeSpec(data="pool.jsonl")}
    run(make_job(tmp_path, **sections), stages=STAGES)
    (tmp_path / "pool.jsonl").write_text("2")
    assert whys(tmp_path, **sections)["calibrate"] == "data changed: pool.jsonl"
    (tmp_path / "pool.jsonl").write_text("1")
    assert whys(tmp_path, **sections) == {}
    (tmp_path / "model" / "model.safetensors").write_bytes(b"Weights")
    found = whys(tmp_path, **sections)
    assert found["quantize"] == "content of the model changed"
    assert found["baseline"] == "not done yet", "another model is another shared folder"
    assert "calibrate" not in found
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    job = replace(make_job(tmp_path, **sections), seed=1)
    steps = make_plan(job, stages=STAGES).steps
    assert all(step.action == "run" for step in steps)
    assert steps[0].why == "seed changed"


def test_touching_a_file_changes_nothing(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    os.utime(tmp_path / "model" / "model.safetensors", (1, 1))
    assert whys(tmp_path) == {}


def test_a_code_change_rebuilds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "fake_backend"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(str(package.parent))
    stages = (replace(STAGES[0], code=("fake_backend",)), *STAGES[1:])
    run(make_job(tmp_path), stages=stages)
    (package / "__init__.py").write_text("A = 2\n")
    code_digest.cache_clear()
    steps = make_plan(make_job(tmp_path), stages=stages).steps
    assert steps[0].why == "code of fake_backend changed"
    assert "fake_backend" not in sys.modules, "hashing does not import"
    code_digest.cache_clear()


def test_force_and_until(tmp_path: Path) -> None:
    outcome = run(make_job(tmp_path), stages=STAGES, until="gate")
    assert (outcome.outcome, calls(tmp_path)) == ("passed", ALL[:5])
    assert not (tmp_path / "releases").exists()
    again(tmp_path)
    assert run(make_job(tmp_path), stages=STAGES, until="quantize").outcome == "done"
    assert calls(tmp_path) == []
    run(make_job(tmp_path), stages=STAGES, force=["evaluate"])
    assert calls(tmp_path) == ["evaluate", "gate", "speculate", "approve", "release"]
    again(tmp_path)
    run(make_job(tmp_path), stages=STAGES, force=["all"])
    assert calls(tmp_path) == ALL
    with pytest.raises(UsageError) as caught:
        make_plan(make_job(tmp_path), stages=STAGES, until="gates")
    assert caught.value.remedy == "did you mean 'gate'?"


def test_what_was_made_again_makes_its_dependents_again(tmp_path: Path) -> None:
    """The same digest is not the same bytes: a verdict holds for the checkpoint that was measured."""
    run(make_job(tmp_path), stages=STAGES)
    again(tmp_path)
    (RunFolder.of(tmp_path, "run").stage("quantize") / RESULT).unlink()
    assert whys(tmp_path)["quantize"] == "not done yet"
    failing = make_job(tmp_path, evaluate=FakeSpec(fail="engine"))
    assert run(failing, stages=STAGES).exit_code == 4
    assert calls(tmp_path) == ["quantize", "evaluate"]
    again(tmp_path)
    run(make_job(tmp_path), stages=STAGES)
    assert calls(tmp_path) == ["evaluate", "gate", "speculate", "approve", "release"]


def test_a_dependent_left_from_an_older_build_is_not_reused(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    folder = RunFolder.of(tmp_path, "run").stage("quantize")
    result = read_result(folder)
    assert result is not None
    del result["check"]
    write_json(folder / RESULT, listed(folder, {**result, "build": "0" * 32}))
    assert whys(tmp_path)["evaluate"] == "quantize was made again since"


def test_what_is_shared_is_made_again_with_what_it_was_made_from(tmp_path: Path) -> None:
    control = replace(STAGES[2], name="control", sections=("control",), needs=("baseline",), reads=())
    stages = (*STAGES[:3], control, *STAGES[3:4], replace(STAGES[4], needs=("baseline", "control", "evaluate")))
    job = make_job(tmp_path)
    job = replace(job, sections={**job.sections, "control": FakeSpec()})
    assert run(job, stages=stages).exit_code == 0
    again(tmp_path)
    assert run(job, stages=stages, force=["baseline"]).exit_code == 0
    assert calls(tmp_path) == ["baseline", "control", "evaluate", "gate"]
    again(tmp_path)
    assert run(job, stages=stages).exit_code == 0
    assert calls(tmp_path) == [], "nothing is left that does not fit"


def test_a_broken_result_is_not_done(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    (RunFolder.of(tmp_path, "run").stage("gate") / RESULT).write_text('{"digest": ')
    assert whys(tmp_path)["gate"] == "not done yet"


def test_a_shared_folder_that_was_touched_is_not_used(tmp_path: Path) -> None:
    assert run(make_job(tmp_path), stages=STAGES).exit_code == 0
    (shared,) = (tmp_path / CACHE).glob("baseline-*/")
    (shared / "out-0.txt").write_text("better answers")
    again(tmp_path)
    refused = run(make_job(tmp_path), stages=STAGES)
    assert refused.exit_code == 4
    assert refused.error is not None
    assert "out-0.txt was changed since it was measured" in refused.error.message
    assert "`--force baseline`" in refused.error.remedy
    assert calls(tmp_path) == [], "nothing is measured against it"
    assert run(make_job(tmp_path), stages=STAGES, force=["baseline"]).exit_code == 0
    assert run(make_job(tmp_path), stages=STAGES).exit_code == 0


def test_a_shared_folder_without_an_integrity_record_is_not_used(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    (shared,) = (tmp_path / CACHE).glob("baseline-*/")
    result = read_result(shared)
    assert result is not None
    write_json(shared / RESULT, {k: v for k, v in result.items() if k not in ("files", "seal")})
    refused = run(make_job(tmp_path), stages=STAGES)
    assert refused.exit_code == 4
    assert "has no integrity record" in str(refused.error)


def test_with_a_key_what_others_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(make_job(tmp_path), stages=STAGES)
    monkeypatch.setenv("SQTOOL_CACHE_KEY", "k" * 32)
    assert "is not signed" in str(run(make_job(tmp_path), stages=STAGES).error)
    assert run(make_job(tmp_path), stages=STAGES, force=["baseline"]).exit_code == 0
    assert run(make_job(tmp_path), stages=STAGES).exit_code == 0
    monkeypatch.setenv("SQTOOL_CACHE_KEY", "o" * 32)
    assert "was not signed with the key" in str(run(make_job(tmp_path), stages=STAGES).error)
    monkeypatch.setenv("SQTOOL_CACHE_KEY", "short")
    assert "at least 16" in str(run(make_job(tmp_path), stages=STAGES).error)


def test_a_key_that_is_too_short_stops_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQTOOL_CACHE_KEY", "short")
    plan = make_plan(make_job(tmp_path), stages=STAGES)
    assert ["at least 16" in str(problem) for problem in plan.problems] == [True]
    outcome = run(make_job(tmp_path), stages=STAGES)
    assert (outcome.exit_code, calls(tmp_path)) == (4, [])
    assert run(make_job(tmp_path), stages=STAGES, until="quantize").exit_code == 0, "nothing shared is needed"


def flip(path: Path) -> None:
    """One bit is another one; size and time of change are as before."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize(("file", "said"), [("out-0.txt", "out-0.txt was changed since"), (RESULT, "changed since")])
def test_a_damaged_stage_is_made_again(tmp_path: Path, file: str, said: str) -> None:
    run(make_job(tmp_path), stages=STAGES)
    again(tmp_path)
    path = RunFolder.of(tmp_path, "run").stage("evaluate") / file
    before = path.read_text()
    if file == RESULT:
        path.write_text(before.replace('"text": ""', '"text": "x"'))
    else:
        flip(path)
    assert whys(tmp_path)["evaluate"].endswith(said)
    assert run(make_job(tmp_path), stages=STAGES).exit_code == 0
    assert calls(tmp_path) == ["evaluate", "gate", "approve", "release"]
    assert file == RESULT or path.read_text() == before


def test_a_file_that_was_added_or_removed_is_damage_too(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    folder = RunFolder.of(tmp_path, "run").stage("evaluate")
    (folder / "more.txt").write_text("x")
    assert whys(tmp_path)["evaluate"] == "more.txt was added since"
    (folder / "more.txt").unlink()
    assert whys(tmp_path) == {}
    (folder / "out-0.txt").unlink()
    assert whys(tmp_path)["evaluate"] == "out-0.txt is gone since"


def test_a_result_may_no_longer_hold(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    (tmp_path / "releases" / "run").unlink()
    assert whys(tmp_path) == {"release": "the release is gone"}
    run(make_job(tmp_path), stages=STAGES)
    assert (tmp_path / "releases" / "run").is_file()


def test_a_finished_checkpoint_takes_the_place_of_quantize(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("1")
    skip = {"calibrate": FakeSpec(text="skip"), "quantize": FakeSpec(text="skip")}
    job = replace(make_job(tmp_path, **skip), checkpoint=checkpoint)
    outcome = run(job, stages=STAGES)
    assert outcome.exit_code == 0
    assert calls(tmp_path) == ["baseline", "evaluate", "gate", "speculate", "approve", "release"]
    plan = make_plan(job, stages=STAGES)
    assert plan.steps[3].inputs.candidate == checkpoint
    assert "quantize" not in plan.steps[3].inputs.folders
    (checkpoint / "weights").write_text("2")
    found = {s.stage.name: s.why for s in make_plan(job, stages=STAGES).steps if s.action == "run"}
    assert found["evaluate"] == "content of the candidate changed"
    assert "baseline" not in found


def test_the_run_folder_may_move(tmp_path: Path) -> None:
    run(make_job(tmp_path / "a"), stages=STAGES)
    (tmp_path / "a").rename(tmp_path / "b")
    assert whys(tmp_path / "b") == {}


def test_estimates_come_from_earlier_runs(tmp_path: Path) -> None:
    run(make_job(tmp_path), stages=STAGES)
    plan = make_plan(make_job(tmp_path), stages=STAGES, force=["all"])
    assert {step.guess.source for step in plan.steps} == {"1 earlier run here"}
    assert plan.seconds is not None
    assert make_plan(make_job(tmp_path / "elsewhere"), stages=STAGES).seconds is None


def test_a_plan_need_not_hash_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqtool.pipeline.plan as planning

    monkeypatch.setattr(planning, "LARGE_BYTES", 10)
    job = make_job(tmp_path)
    (job.model / "model.safetensors").write_bytes(b"x" * 100)
    quick = make_plan(job, stages=STAGES, hash_large=False)
    assert [path.name for path in quick.unread] == ["model.safetensors"]
    whole = make_plan(job, stages=STAGES)
    assert whole.unread == ()
    assert [step.digest for step in quick.steps] != [step.digest for step in whole.steps]
