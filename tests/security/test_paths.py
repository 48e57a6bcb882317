"""Names that become folders and files never lead out of where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from evals.tasks import TaskSpec
from quantize.headers import INDEX, read_index
from quantize.vetting import check_model
from sqtool.errors import DataError, RecipeError, SqtoolError
from sqtool.pipeline import find_model
from sqtool.recipe import load_recipe
from sqtool.release.manifest import checkpoint_files, unsafe
from sqtool.release.spec import ReleaseSpec
from tests.security.conftest import METHODS, PLAIN, safetensors

ESCAPES = ("..", ".", "../x", "a/b", "/etc/passwd", "a/../../b", ".hidden", "a\\b", "~/x", "x\n", " ", "x\u202e")


@pytest.mark.parametrize("name", ESCAPES)
def test_names_of_runs_releases_and_tasks(name: str, recipe: Callable[[str | bytes], Path]) -> None:
    with pytest.raises(RecipeError):
        load_recipe(recipe(METHODS + f"name: {json.dumps(name)}\n"))
    for key in ("name", "version"):
        with pytest.raises(ValidationError):
            ReleaseSpec.model_validate({key: name})
    with pytest.raises(ValidationError):
        TaskSpec.model_validate({"task": name, "items": "x.jsonl", "scorer": "exact_match"})


@pytest.mark.parametrize("name", ["../x", "..", "/etc/passwd", "a/../b", "a//b", "./a", "a\\b", "a\0b", ""])
def test_names_in_a_manifest(name: str) -> None:
    assert unsafe(name)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "..", "model.bin", "", None, 1, ["x"], "x.safetensors\n"],
)
def test_an_index_that_leads_out_of_the_model(name: object, model: Path) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(DataError) as caught:
        check_model(model)
    assert "weight_map" in caught.value.message
    assert caught.value.remedy


def test_a_plain_index_passes(model: Path) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert read_index(model / INDEX) == {"a": "model.safetensors"}
    check_model(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "model-2.safetensors", "additional_chat_templates"])
def test_a_model_with_a_link_to_something_of_ours(name: str, model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the reader's own")
    (model / name).symlink_to(secret)
    with pytest.raises(DataError, match="link that leaves the folder") as caught:
        find_model(model, tmp_path)
    assert caught.value.remedy
    with pytest.raises(DataError, match="leaves the checkpoint"):
        checkpoint_files(model)


def test_the_links_of_a_hub_cache_pass(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (blobs / "2").write_bytes(safetensors(PLAIN))
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/2")
    check_model(snapshot)
    (snapshot / "out").symlink_to("../../../x")
    with pytest.raises(DataError, match="leaves the folder"):
        check_model(snapshot)


def test_paths_of_a_recipe_that_are_no_files_end_in_an_error(
    recipe: Callable[[str | bytes], Path], tmp_path: Path
) -> None:
    from sqtool.pipeline import job_of

    for given in ("/dev/zero", "/proc/self/environ", "../../../etc", "/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(SqtoolError) as caught:
            job_of(load_recipe(recipe(METHODS + f"model: {given}\n"), tmp_path))
        assert caught.value.remedy


@pytest.mark.parametrize("name", [*ESCAPES, "UPPER", "a" * 41, "a\x1b[2J", "baseline", "both_k4", "", "-a", "é"])
def test_names_of_arms(name: str, recipe: Callable[[str | bytes], Path]) -> None:
    """They become folders; small letters only, so that no two differ by case alone."""
    text = METHODS + f"speculate: {{arms: {{{json.dumps(name)}: {{target: baseline}}}}}}\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(text))
    assert caught.value.problems[0].line
    assert load_recipe(recipe(text.replace(json.dumps(name), "kv-fp8_2"))).recipe.speculate.arms


@pytest.mark.parametrize("key", ["name", "version"])
def test_release_names_fit_into_a_file_system(key: str) -> None:
    for name in ("x" * 81, "latest" if key == "version" else "x" * 300, "a\0b", "a\x1b", "con/x", "-x"):
        with pytest.raises(ValidationError):
            ReleaseSpec.model_validate({key: name})


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".x", "a\\b", "x\ny", "x\x1b[2J", "x" * 250, "é" * 120])
def test_tasks_of_lm_eval_that_cannot_be_files(name: str, tmp_path: Path) -> None:
    from evals.harness.catalogue import read
    from evals.harness.spec import LmEvalSpec

    (tmp_path / "own").mkdir()
    (tmp_path / "own/data.jsonl").write_text('{"q": "a", "a": "b"}\n')
    text = (
        "task: NAME\ndataset_path: json\ndataset_kwargs: {data_files: own/data.jsonl}\n"
        "output_type: generate_until\ntest_split: train\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    (tmp_path / "own/task.yaml").write_text(text.replace("NAME", json.dumps(name)))
    with pytest.raises(SqtoolError, match="its records need a file of that name"):
        read(LmEvalSpec(tasks=(name,), include_path="own"), tmp_path)
    (tmp_path / "own/task.yaml").write_text(text.replace("NAME", "plain"))
    assert list(read(LmEvalSpec(tasks=("plain",), include_path="own"), tmp_path).leaves) == ["plain"]


def test_nothing_is_written_through_a_link_in_a_run_folder(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    """A run folder may be a copy of somebody's. What is replaced is the link, and what is appended to must be none."""
    from sqtool.errors import InfrastructureError
    from sqtool.files import write_text
    from sqtool.pipeline import Job
    from sqtool.pipeline.run import run
    from sqtool.report import write_report
    from sqtool.runfolder import RunFolder

    own = tmp_path / "own"
    own.write_text("mine")
    folder = make_run()
    for name in ("report.md", "report.html"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(own)
    write_report(folder)
    (tmp_path / "junit.xml").symlink_to(own)
    write_text(tmp_path / "junit.xml", "<testsuites/>")  # what --output does
    assert own.read_text() == "mine"
    place = RunFolder.of(tmp_path, "copied")
    place.path.mkdir(parents=True)
    place.log.symlink_to(own)
    with pytest.raises(InfrastructureError, match="is a link"):
        run(Job("copied", tmp_path, tmp_path / "model", {}))
    assert own.read_text() == "mine"


def test_output_into_a_finished_stage_is_noticed(tmp_path: Path) -> None:
    """--output is the user's own word and goes where it says; a stage that it hits is made again, never believed."""
    from sqtool.files import write_text
    from sqtool.runfolder import begin, commit, damage, listed, read_result

    stage = tmp_path / "gate"
    (begin(stage) / "verdict.json").write_text("{}")
    commit(stage, listed(stage.with_name("gate.tmp"), {"digest": "d"}))
    assert damage(stage, read_result(stage) or {}) == ""
    (tmp_path / "elsewhere").symlink_to(stage)
    write_text(tmp_path / "elsewhere/verdict.json", "<testsuites/>")
    assert damage(stage, read_result(stage) or {}) == "verdict.json was changed"
