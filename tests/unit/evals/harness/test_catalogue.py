"""Names, files and metrics of lm-eval's tasks, and what is wrong with them, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.harness import catalogue
from evals.harness.catalogue import check_served, data_files, fingerprint, metric_problem, read
from evals.harness.loading import load
from evals.harness.spec import LmEvalSpec
from sqtool.errors import DataError, UsageError
from tests.unit.evals.harness.conftest import ROOT, TASKS


def spec(*tasks: str, **more: Any) -> LmEvalSpec:
    return LmEvalSpec(tasks=tasks, **{"include_path": TASKS, **more})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A root of its own with the same tasks."""
    shutil.copytree(ROOT / TASKS, tmp_path / TASKS)
    return tmp_path


def write(project: Path, name: str, text: str) -> Path:
    path = project / TASKS / name
    path.write_text(text)
    return path


def test_a_folder_that_has_everything_is_read_alone() -> None:
    found = read(spec("lookups", "lookup_prose"), ROOT)
    assert list(found.leaves) == ["lookup_text", "lookup_choice", "lookup_prose"]
    assert len(found.manager.all_tasks) < 10, "15,000 tasks would take seconds"


def test_lm_evals_own_groups_and_tags_are_known_without_their_data() -> None:
    found = read(spec("ai2_arc", "mmlu_stem", include_path=None), ROOT)
    assert {"arc_easy", "arc_challenge", "mmlu_astronomy"} <= set(found.leaves)
    assert data_files(spec("mmlu_stem", include_path=None), ROOT) == [], "what comes with lm-eval has its version"


@pytest.mark.parametrize(("name", "near"), [("lookup_txt", "lookup_text"), ("arc_esy", "arc_easy")])
def test_a_wrong_name(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"lm-eval 0\.4\.13 knows no task '{name}'") as caught:
        read(spec(name), ROOT)
    assert f"did you mean '{near}'?" in caught.value.remedy


def test_a_yaml_file_that_lm_eval_passes_over_in_silence_is_named(project: Path) -> None:
    path = write(project, "broken.yaml", "task: broken\n  dataset_path: json\n")
    with pytest.raises(UsageError, match=r"knows no task 'broken'; .*broken\.yaml cannot be read \(mapping values"):
        read(spec("broken"), project)
    assert path.is_file()


def test_a_task_by_its_file() -> None:
    given = spec(f"{TASKS}/lookup_choice.yaml", include_path=None)
    assert list(read(given, ROOT).leaves) == ["lookup_choice"]
    assert [loaded.name for loaded in load(given, ROOT)] == ["lookup_choice"]
    assert {path.name for path in data_files(given, ROOT)} == {"lookup_choice.yaml", "_lookup.yaml", "lookup.jsonl"}
    with pytest.raises(UsageError, match=r"no such file: nothing\.yaml"):
        read(spec("nothing.yaml"), ROOT)


def test_a_bad_include_path(project: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: evaluate\.lm_eval\.include_path: no such folder"):
        read(spec("x", include_path="nowhere"), project)
    (project / "empty").mkdir()
    with pytest.raises(DataError, match="holds no task"):
        read(spec("x", include_path="empty"), project)


def test_a_digest_follows_files_configuration_and_versions(project: Path) -> None:
    given = spec("lookup_choice")
    names = {path.relative_to(project).name for path in data_files(given, project)}
    assert {"lookup_choice.yaml", "_lookup.yaml", "lookup.jsonl", "lookup_text.yaml"} <= names, "all of include_path"
    before = fingerprint(given, project)
    assert before.keys() == {"lm-eval", "lm-eval task lookup_choice"}
    assert before["lm-eval task lookup_choice"].startswith("2.0 ")
    assert before == fingerprint(given, ROOT), "wherever the folder lies"
    path = project / TASKS / "lookup_choice.yaml"
    path.write_text(path.read_text().replace("acc_norm", "acc_bytes"))
    assert fingerprint(given, project) != before
    assert fingerprint(spec("nothing_like_it"), project) == {"lm-eval": "0.4.13"}, "never raises"


def test_functions_beside_a_task_are_part_of_it(project: Path) -> None:
    write(project, "words.py", "def text(doc):\n    return doc['question']\n")
    write(project, "coded.yaml", "include: _lookup.yaml\ntask: coded\ndoc_to_text: !function words.text\n")
    assert "words.py" in {path.name for path in data_files(spec(f"{TASKS}/coded.yaml", include_path=None), project)}


@pytest.mark.parametrize(
    ("task", "metric", "message"),
    [
        ("lookup_choice", "acc", None),
        ("lookup_choice", "acc_norm", None),
        ("lookup_choice", "brier_score", r"from all items together \(with brier_score\)"),
        ("lookup_choice", "acc_nrm", "has no such metric"),
        ("lookup_choice", "truncated", "has no such metric"),
        ("lookup_prose", "word_perplexity", r"from all items together \(with weighted_perplexity\)"),
        ("lookup_text", "exact_match,word", None),
        ("lookup_text", "exact_match", "has no such metric"),
        ("lookup_text", "truncated", None),
    ],
)
def test_what_can_be_gated(task: str, metric: str, message: str | None) -> None:
    problem = metric_problem(read(spec(task), ROOT).leaves[task], metric)
    if message is None:
        assert problem is None
    else:
        assert problem is not None
        with pytest.raises(UsageError, match=message):
            raise problem


def test_a_near_metric_is_suggested() -> None:
    problem = metric_problem(read(spec("lookup_text"), ROOT).leaves["lookup_text"], "exact_match,wrd")
    assert problem is not None
    assert problem.remedy == "did you mean 'exact_match,word'?"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("dataset_path: org/nothing\ntest_split: test", "data of the lm-eval task are not on this machine"),
        (
            "dataset_path: json\ndataset_kwargs: {data_files: {test: nothing.jsonl}}\ntest_split: test",
            "data of the lm-eval task are not on this machine",
        ),
        ("include: _lookup.yaml\noutput_type: guess", "cannot load the task .*Got invalid output_type 'guess'"),
        ("include: _lookup.yaml\ndoc_to_text: '{{ question'", "cannot load the task"),
        ("include: _lookup.yaml\ntest_split: nothing", "cannot load the task"),
        ("include: _lookup.yaml\nunsafe_code: true\ndoc_to_target: answer", "runs what the model writes"),
    ],
)
def test_a_task_that_does_not_load(project: Path, yaml: str, message: str) -> None:
    write(project, "bad.yaml", f"task: bad\n{yaml}\n")
    with pytest.raises(DataError, match=message) as caught:
        load(spec("bad"), project)
    assert "bad" in caught.value.message
    assert caught.value.remedy


def test_a_task_twice(project: Path) -> None:
    with pytest.raises(UsageError, match="'lookup_text' is named twice"):
        load(spec("lookups", "lookup_text"), project)


def test_a_server_cannot_search_beams(project: Path) -> None:
    given = spec("lookup_text", gen_kwargs={"num_beams": 4})
    with pytest.raises(DataError, match="a server cannot generate with num_beams"):
        check_served(given, read(given, project))


def test_data_are_relative_to_the_project_root(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (loaded,) = load(spec("lookup_choice", num_fewshot=3), project)
    assert loaded.size == 24
    assert loaded.task.get_config("num_fewshot") == 3
    assert Path.cwd() == elsewhere


@pytest.mark.parametrize("name", ["a/b", ".hidden"])
def test_names_that_no_records_file_can_have(project: Path, name: str) -> None:
    write(project, "odd.yaml", f"include: _lookup.yaml\ntask: {name}\n")
    with pytest.raises(UsageError, match="cannot be measured"):
        read(spec(name), project)


def test_the_index_is_kept_while_the_files_are_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(spec("lookup_text"), project)
    assert read(spec("lookup_text"), project) is first
    write(project, "more.yaml", "include: _lookup.yaml\ntask: more\n")
    assert list(read(spec("more"), project).leaves) == ["more"]
    assert catalogue.version() == "0.4.13"
