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
