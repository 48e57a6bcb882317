"""Code of others runs only when the command line says so, and the release's manifest then says that it did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.harness.code import sandbox_templates, tagged_files
from evals.harness.spec import LmEvalSpec
from evals.spec import CODE_FLAGS, EngineSpec
from sqtool.errors import RecipeError, UsageError
from sqtool.pipeline import job_of
from sqtool.recipe import load_recipe
from tests.security.conftest import METHODS

Write = Callable[[str | bytes], Path]
ASKING = {
    "the model's": "model: {path: model, trust_remote_code: true}\n",
    "vllm serve --middleware": "model: model\nengine: {extra_args: [--middleware, evil.Middle]}\n",
    "vllm serve --trust-remote-code": "model: model\nengine: {extra_args: [--trust_remote_code]}\n",
    "vllm serve --load-format": "model: model\nengine: {extra_args: [--load-form=pt]}\n",
    "the vLLM in /opt/theirs": "model: model\nengine: {env: /opt/theirs}\n",
    "the model's answers": "model: model\nevaluate: {lm_eval: {tasks: [humaneval], confirm_run_unsafe_code: true}}\n",
    "lm-eval task evil.yaml": "model: model\nevaluate: {lm_eval: {tasks: [evil], include_path: own}}\n",
}


@pytest.mark.parametrize("what", ASKING)
def test_a_recipe_alone_runs_no_code(what: str, recipe: Write, model: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/evil.yaml").write_text("task: evil\nprocess_docs: !function evil.docs\n")
    loaded = load_recipe(recipe(METHODS + ASKING[what]), tmp_path)
    with pytest.raises(RecipeError) as caught:
        job_of(loaded)
    (problem,) = caught.value.problems
    assert problem.line >= 4
    assert "--trust-remote-code" in problem.hint
    job = job_of(loaded, trust_remote_code=True)
    assert job.foreign_code == (what,)
    assert job.trust_remote_code is (what == "the model's")


@pytest.mark.parametrize("env", ["../theirs", "own/../../theirs", "own/../own", "~/theirs", "/", "~nobody-here/x"])
def test_an_environment_outside_of_the_project_is_code_of_others(
    env: str, recipe: Write, model: Path, tmp_path: Path
) -> None:
    loaded = load_recipe(recipe(METHODS + f"model: model\nengine: {{env: '{env}'}}\n"), tmp_path)
    if env.startswith("~nobody"):  # nobody's home: a folder of that name in the project, which is not there
        assert job_of(loaded).foreign_code == ()
        return
    with pytest.raises(RecipeError, match="its bin/vllm would be run") as caught:
        job_of(loaded)
    (problem,) = caught.value.problems
    assert (problem.field, problem.line) == ("engine.env", 5)
    assert "--trust-remote-code" in problem.hint
    (what,) = job_of(loaded, trust_remote_code=True).foreign_code
    assert what.startswith("the vLLM in /")


def test_environments_of_the_project_are_its_owners(
    recipe: Write,
    model: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far = tmp_path_factory.mktemp("far")
    for name in (".venv-vllm", "linked"):  # where a link leads was the decision of whoever made it
        (tmp_path / name).symlink_to(far)
    (tmp_path / "envs/gpu").mkdir(parents=True)
    monkeypatch.chdir(far)
    for env in (".venv-vllm", "linked", "envs/gpu", "not/there", str(tmp_path / "envs/gpu"), str(tmp_path / "linked")):
        job = job_of(load_recipe(recipe(METHODS + f"model: model\nengine: {{env: {env}}}\n"), tmp_path))
        assert job.foreign_code == (), env


def test_a_folder_below_the_working_folder_is_not_the_projects(
    recipe: Write,
    model: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far = tmp_path_factory.mktemp("far")
    (far / "theirs").mkdir()
    monkeypatch.chdir(far)
    with pytest.raises(RecipeError, match="is no folder of this project"):
        job_of(load_recipe(recipe(METHODS + "model: model\nengine: {env: theirs}\n"), tmp_path))


@pytest.mark.parametrize("engine", [{"env": "/opt/theirs"}, {"extra_args": ["--middleware", "evil.Middle"]}])
def test_a_copied_run_runs_no_code_either(engine: dict[str, Any], recipe: Write, model: Path, tmp_path: Path) -> None:
    from sqtool.cli.adhoc import again_job
    from sqtool.cli.elsewhere import Elsewhere
    from sqtool.runfolder import RunFolder

    job = job_of(load_recipe(recipe(METHODS + "model: model\n"), tmp_path))
    folder = RunFolder.of(tmp_path, "copied")
    shutil.copytree(model, folder.stage("quantize") / "checkpoint")
    folder.run_json.write_text(json.dumps({"name": "copied", "root": str(tmp_path), "model": str(model), "stages": []}))
    content = {**job.resolved, "engine": {**job.resolved["engine"], **engine}}
    folder.recipe_json.write_text(json.dumps(content))
    place = Elsewhere("cpu", None, None, None, None, None)
    with pytest.raises(UsageError, match=r"recipe.json: engine\.") as caught:
        again_job(folder, place, {})
    assert "--trust-remote-code" in caught.value.remedy
    assert len(again_job(folder, place, {}, trust=True).foreign_code) == 1


def test_the_flag_alone_trusts_nothing(recipe: Write, model: Path, tmp_path: Path) -> None:
    job = job_of(load_recipe(recipe(METHODS + "model: model\n"), tmp_path), trust_remote_code=True)
    assert job.foreign_code == ()
    assert not job.trust_remote_code


def test_the_manifest_has_a_line_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqtool.release.publish
    from sqtool.release.spec import ReleaseSpec
    from sqtool.stages import release
    from sqtool.stages.contract import Inputs

    given: dict[str, Any] = {}

    def publish(_spec: ReleaseSpec, **values: Any) -> dict[str, Any]:
        given.update(values)
        return {"path": "x"}

    monkeypatch.setattr(sqtool.release.publish, "publish", publish)
    recipe = {"name": "r", "text": "x", "model": "m", "resolved": {}, "foreign_code": ["the model's"]}
    inputs = Inputs(
        model=tmp_path, draft=None, seed=0, root=tmp_path, candidate=tmp_path, recipe=recipe,
        folders=dict.fromkeys(("gate", "baseline", "evaluate"), tmp_path),
    )  # fmt: skip
    release.run(ReleaseSpec(), inputs, tmp_path)
    assert given["provenance"]["foreign_code"] == ["the model's"]


@pytest.mark.parametrize(
    "text",
    [
        "a: !function x.y\n",
        "a: [{b: !function x.y}]\n",
        "%TAG !f! !\n---\na: !f!function x.y\n",
        "a: !<!function> x.y\n",
        "a: !%66unction x.y\n",
        "a: !!python/name:os.system\n",
        "a: [\n",
        "include: other.yaml\n",
        "include: [../deep/other.yaml]\n",
    ],
)
def test_functions_in_task_files_are_found(text: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "deep").mkdir()
    for place in (own / "other.txt", tmp_path / "deep/other.yaml"):
        place.write_text("b: !function x.y\n")
    (own / "task.yaml").write_text(text.replace("include: other.yaml", "include: ../deep/other.yaml"))
    assert tagged_files(LmEvalSpec(tasks=("own/task.yaml",)), (tmp_path,))
    assert tagged_files(LmEvalSpec(tasks=("x",), include_path="own"), (tmp_path,))


def test_plain_task_files_pass(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "task: t\ndoc_to_text: '{{ q }}'\nmetric_list: [{metric: acc}]\ninclude: b.yaml\n"
    )
    (tmp_path / "b.yaml").write_text("dataset_path: json\nother: ! text\n")
    assert tagged_files(LmEvalSpec(tasks=("task.yaml",), include_path="."), (tmp_path,)) == []


def test_templates_of_lm_eval_cannot_reach_python() -> None:
    from jinja2.exceptions import SecurityError
    from lm_eval.utils import apply_template

    sandbox_templates()
    assert apply_template("{{ a | regex_replace('x', 'y') }}", {"a": "xx"}) == "yy"
    with pytest.raises(SecurityError):
        apply_template("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})


@pytest.mark.parametrize(
    "words",
    [
        ["--host", "0.0.0.0"], ["--host=0.0.0.0"], ["--hos", "0.0.0.0"], ["--api_key", "x"], ["--api-k=x"],
        ["--config", "own.yaml"], ["--port", "1"], ["--uds", "/x"], ["--hf-token", "x"], ["--served_model_name", "x"],
    ],
)  # fmt: skip
def test_flags_that_would_open_the_server_are_ours_alone(words: list[str]) -> None:
    with pytest.raises(ValueError, match="is set by sqtool itself"):
        EngineSpec.model_validate({"extra_args": words})


def test_every_flag_that_runs_code_is_seen() -> None:
    from evals.spec import code_flags

    for flag in CODE_FLAGS:
        for word in (flag, flag + "=x", flag.replace("-", "_").replace("__", "--", 1), flag[:-1]):
            assert code_flags([word]) == [flag], word
    assert code_flags(["--swap-space", "1", "--max-logprobs=5"]) == []
