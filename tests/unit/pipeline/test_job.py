from __future__ import annotations

from pathlib import Path

import pytest

from sqtool.errors import InfrastructureError, UsageError
from sqtool.pipeline import find_model, job_of
from sqtool.recipe import load_recipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("models/target", "near/target2", "artifacts/reference/target", "artifacts/reference/draft"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def test_a_model_is_found_from_the_root_beside_the_recipe_or_absolute(root: Path) -> None:
    assert find_model("models/target", root) == root / "models/target"
    assert find_model("target2", root, root / "near") == root / "near/target2"
    assert find_model(str(root / "models/target"), Path("/")) == root / "models/target"


def test_a_mistyped_path_never_goes_to_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    with pytest.raises(UsageError) as caught:
        find_model("models/targt", root)
    assert caught.value.remedy == "Did you mean 'target'?"
    with pytest.raises(UsageError, match=r"has no config\.json"):
        find_model("models", root)
    with pytest.raises(UsageError) as caught:
        find_model("artifacts/reference/targett", root)
    assert "sqtool doctor" in caught.value.remedy
    for text in ("/absolute/model", "a/b/c", "..", "~/model"):
        with pytest.raises(UsageError):
            find_model(text, root)


def test_a_hub_id_offline_says_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def offline(name: str, *, revision: str | None = None, local_files_only: bool = False, **_: object) -> str:
        asked.append((name, revision, local_files_only))
        raise LocalEntryNotFoundError("outgoing traffic is disabled")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InfrastructureError) as caught:
        find_model("someone/some-model", root, revision="v1")
    assert asked == [("someone/some-model", "v1", True), ("someone/some-model", "v1", False)]
    assert "outgoing traffic is disabled" in caught.value.message
    assert "HF_TOKEN" in caught.value.remedy


def test_a_hub_model_in_the_cache_is_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(root / "models/target"))
    assert find_model("someone/some-model", root) == root / "models/target"


def test_data_beside_the_recipe_are_named_from_the_root(root: Path) -> None:
    folder = root / "team"
    folder.mkdir()
    for name in ("pool.jsonl", "traffic.jsonl", "quiz.yaml"):
        (folder / name).touch()
    (folder / "small").mkdir()
    (folder / "r.yaml").write_text(
        "calibrate: {sources: [{path: pool.jsonl}, {path: elsewhere.jsonl}]}\n"
        "quantize: {methods: [{awq: {}}]}\n"
        "evaluate: {tasks: [quiz.yaml]}\n"
        "speculate:\n"
        "  traffic: traffic.jsonl\n"
        "  model: small\n"
        "  arms: {a: {target: baseline, speculative: {model: small}}}\n"
    )
    job = job_of(load_recipe(folder / "r.yaml"))
    sections = {name: section.model_dump() for name, section in job.sections.items()}
    assert [s["path"] for s in sections["calibrate"]["sources"]] == ["team/pool.jsonl", "elsewhere.jsonl"]
    assert sections["evaluate"]["tasks"] == ("team/quiz.yaml",)
    assert sections["speculate"]["traffic"] == "team/traffic.jsonl"
    assert sections["speculate"]["model"] == "team/small"
    assert sections["speculate"]["arms"]["a"]["speculative"]["model"] == "team/small"
    assert job.draft == root / "artifacts/reference/draft"


def test_the_roots_own_data_win(root: Path) -> None:
    (root / "team").mkdir()
    for name in ("pool.jsonl", "team/pool.jsonl"):
        (root / name).touch()
    recipe = root / "team/r.yaml"
    recipe.write_text("calibrate: {sources: [{path: pool.jsonl}]}\nquantize: {methods: [{awq: {}}]}\n")
    section = job_of(load_recipe(recipe)).sections["calibrate"]
    assert section.model_dump()["sources"][0]["path"] == "pool.jsonl"
