from __future__ import annotations

from pathlib import Path

import pytest

from sqtool.errors import RecipeError, UsageError
from sqtool.recipe import find_recipe, json_schema, load_recipe, project_root
from sqtool.recipe.model import Recipe

TEN_LINES = """\
name: mine
model: models/mine
quantize:
  methods:
    - awq: {scheme: W4A16_ASYM}
"""


def problems(tmp_path: Path, text: str) -> dict[str, tuple[int, str, str]]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return {p.field: (p.line, p.message, p.hint) for p in caught.value.problems}


def write(tmp_path: Path, text: str, name: str = "mine.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_ten_lines_are_enough(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, TEN_LINES))
    assert loaded.name == "mine"
    assert loaded.recipe.gate.alpha == 0.05
    assert loaded.recipe.gate.inconclusive == "refuse"
    assert not loaded.recipe.model.trust_remote_code
    assert loaded.recipe.draft is None, "a model of one's own has no draft unless the recipe names one"


def test_the_reference_target_brings_its_draft(tmp_path: Path) -> None:
    bare = "quantize: {methods: [{rtn: {scheme: W4A16}}]}\n"
    loaded = load_recipe(write(tmp_path, bare, "bare.yaml"))
    assert str(loaded.recipe.model) == "artifacts/reference/target"
    assert str(loaded.recipe.draft) == "artifacts/reference/draft"
    assert loaded.name == "bare"
    named = load_recipe(write(tmp_path, "model: artifacts/reference/target\n" + bare))
    assert str(named.recipe.draft) == "artifacts/reference/draft"
    without = load_recipe(write(tmp_path, "draft: null\n" + bare))
    assert without.recipe.draft is None


def test_a_finished_checkpoint(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, "quantize: {checkpoint: someone/model-w4a16}\n"))
    assert loaded.recipe.quantize.checkpoint == "someone/model-w4a16"


def test_every_problem_at_once_each_with_line_and_suggestion(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "modell: x\n"
        "seed: '3'\n"
        "calibrate:\n"
        "  coverage: {min_per_knd: 3}\n"
        "quantize:\n"
        "  methods:\n"
        "    - awk: {}\n"
        "    - gptq: {actorder: statik, block_size: yes}\n"
        "gate:\n"
        "  inconclusive: refuze\n"
        "  metrics:\n"
        "    tool_calls.call_match: {max_drop: 2}\n"
        "seed: 4\n"
        "evaluate: []\n"
        "engine: {dtype: bf16, enforce_eager: 'true'}\n"
        "release: {name: !!python/object:os.system x}\n",
    )
    assert found["modell"] == (1, "unknown key", "did you mean 'model'?")
    assert found["calibrate.coverage.min_per_knd"] == (4, "unknown key", "did you mean 'min_per_kind'?")
    assert found["quantize.methods.0"][0] == 7
    assert "did you mean 'awq'?" in found["quantize.methods.0"][1]
    assert found["quantize.methods.1.gptq.actorder"][::2] == (8, "did you mean 'static'?")
    assert found["quantize.methods.1.gptq.block_size"][1] == "expected a whole number, found the text 'yes'"
    assert found["gate.inconclusive"][::2] == (10, "did you mean 'refuse'?")
    assert found["gate.metrics.tool_calls.call_match.max_drop"][0] == 12
    assert found["seed"] == (13, "is given twice (first on line 2)", "")
    assert found["evaluate"][:2] == (14, "expected a mapping, found a list")
    assert found["engine.dtype"][::2] == (15, "did you mean 'bfloat16'?")
    assert found["engine.enforce_eager"][1] == "expected true or false, found the text 'true'"
    assert found["release.name"][1] == "has the tag !!python/object:os.system"


def test_numbers_are_not_made_of_texts(tmp_path: Path) -> None:
    found = problems(tmp_path, TEN_LINES + "evaluate: {concurrency: '64', limit: '5'}\ngate: {alpha: '0.1'}\n")
    assert found["evaluate.concurrency"][1:] == ("expected a whole number, found the text '64'", "leave the quotes out")
    assert found["evaluate.limit"][2] == "leave the quotes out"
    assert found["gate.alpha"][1] == "expected a number, found the text '0.1'"


def test_a_gated_metric_needs_its_task(tmp_path: Path) -> None:
    text = TEN_LINES + "evaluate: {tasks: [recall]}\ngate:\n  metrics:\n    recal.exact_match: 0.02\n"
    found = problems(tmp_path, text)
    assert found["gate.metrics.recal.exact_match"][::2] == (9, "did you mean 'recall'?")
    found = problems(tmp_path, TEN_LINES + "evaluate: {tasks: [recall]}\n")
    assert found["evaluate.tasks"][2] == "set gate.metrics to metrics of these tasks"


def test_model_is_a_path_or_an_id_never_both(tmp_path: Path) -> None:
    found = problems(tmp_path, TEN_LINES.replace("model: models/mine", "model: {path: a, id: b/c}"))
    assert found["model"][:2] == (2, "give either path (a folder) or id (a name on the hub)")
    found = problems(tmp_path, TEN_LINES.replace("model: models/mine", "model: {path: a, revision: main}"))
    assert "revision" in found["model"][1]


def test_methods_or_checkpoint_is_required(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\n")["quantize"][1] == "the key `quantize` is required and missing"
    assert "methods" in problems(tmp_path, "quantize: {}\n")["quantize"][1]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [(b"name: x\nseed: \xff\n", 2, "not UTF-8 text"), (b"- 1\n- 2\n", 1, "expected keys and values, found a list")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, line: int, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [(p.line, p.message) for p in caught.value.problems] == [(line, message)]


def test_names_that_would_escape_the_runs_folder(tmp_path: Path) -> None:
    for name in ("../x", "a/b", ".hidden", "x.tmp", "''"):
        text = TEN_LINES.replace("name: mine", f"name: {name}")
        if name == "''":
            assert load_recipe(write(tmp_path, text)).name == "mine"
        else:
            assert "name" in problems(tmp_path, text)


def test_the_root_is_the_nearest_project(tmp_path: Path) -> None:
    recipe = tmp_path / "project" / "recipes" / "deep" / "r.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(TEN_LINES, encoding="utf-8")
    (tmp_path / "project" / "pyproject.toml").touch()
    assert project_root(recipe) == tmp_path / "project"
    assert load_recipe(recipe).root == tmp_path / "project"
    assert load_recipe(recipe, tmp_path).root == tmp_path


def test_find_recipe_by_path_name_and_suggestion(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = write(folder, TEN_LINES, "awq4.yaml")
    assert find_recipe(str(path)) == path
    assert find_recipe("awq4", tmp_path) == path
    assert find_recipe("awq4.yaml", tmp_path) == path
    with pytest.raises(UsageError) as caught:
        find_recipe("awk4", tmp_path)
    assert caught.value.remedy == "Did you mean 'awq4'?"
    with pytest.raises(UsageError, match="is a folder"):
        find_recipe(str(folder))


def test_the_schema_accepts_what_the_model_accepts() -> None:
    from jsonschema import Draft202012Validator

    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    recipe = {
        "model": "a/b",
        "quantize": {"methods": [{"awq": {"scheme": "W4A16"}}]},
        "gate": {"metrics": {"a.b": 0.1}},
    }
    assert list(validator.iter_errors(recipe)) == []
    assert list(validator.iter_errors({**recipe, "modell": 1}))
    assert set(schema["properties"]) == set(Recipe.model_fields)


def test_a_section_is_part_of_a_digest_and_so_does_not_change(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, TEN_LINES)).recipe
    with pytest.raises(ValueError):
        recipe.gate.alpha = 0.2
    with pytest.raises(KeyError):
        recipe.section("nothing")


def test_every_key_of_the_schema_says_what_it_is_for() -> None:
    schema = json_schema()
    parts = {"recipe": schema, **schema["$defs"]}
    silent = [
        f"{part}.{key}"
        for part, of in parts.items()
        for key, value in of.get("properties", {}).items()
        if not value.get("description", "").strip()
    ]
    assert silent == []
