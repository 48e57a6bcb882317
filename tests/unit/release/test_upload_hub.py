"""Releases on the Hugging Face hub, against a double of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import InfrastructureError, UsageError
from sqtool.release.manifest import MANIFEST

from .conftest import RECIPE, Case, check
from .fake_hub import FakeHub

TO = "hf://owner/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def files(hub: FakeHub, revision: str) -> dict[str, bytes]:
    return hub.commits[{**hub.branches, **hub.tags}[revision]]


def test_what_arrives_is_the_release(case: Case, hub: FakeHub, key: Path, tmp_path: Path) -> None:
    result = case.publish(spec={"to": TO, "sign": {"key": str(key)}}, records=case.records)
    assert result["uploaded"] == "https://huggingface.co/owner/name/tree/v1"
    assert hub.private is True
    assert list(hub.branches) == ["main"]
    assert files(hub, "main") == files(hub, "v1")
    for name, data in files(hub, "main").items():
        path = tmp_path / "got" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = check(tmp_path / "got", key)
    assert (found.ok, found.signature) == (True, "valid")


def test_a_public_repository(case: Case, hub: FakeHub) -> None:
    case.publish(spec={"to": TO, "private": False})
    assert hub.private is False


def test_main_holds_only_the_newest_and_tags_keep_the_others(case: Case, hub: FakeHub) -> None:
    (case.checkpoint / "only-in-v1.json").write_text("{}")
    from sqtool.files import digest_folder

    case.edit_verdict(lambda v: v["bindings"].update(candidate_digest=digest_folder(case.checkpoint)))
    case.publish(spec={"to": TO})
    (case.checkpoint / "only-in-v1.json").unlink()
    case.edit_verdict(lambda v: v["bindings"].update(candidate_digest=digest_folder(case.checkpoint)))
    case.publish(spec={"to": TO, "version": "v2"})
    assert "only-in-v1.json" in files(hub, "v1")
    assert "only-in-v1.json" not in files(hub, "main")
    assert ".gitattributes" in files(hub, "main")


def test_again_finds_the_tag_and_reads_it_back(case: Case, hub: FakeHub) -> None:
    case.publish(spec={"to": TO})
    commits = len(hub.commits)
    hub.calls.clear()
    case.publish(spec={"to": TO})
    assert len(hub.commits) == commits
    assert "get_paths_info" in hub.calls


def test_a_version_is_never_overwritten(case: Case, hub: FakeHub, tmp_path: Path) -> None:
    case.publish(spec={"to": TO})
    before = dict(hub.branches), dict(hub.tags)
    case.recipe_text = RECIPE + "seed: 1\n"
    with pytest.raises(UsageError, match="never overwritten"):
        case.publish(spec={"to": TO}, root=tmp_path / "another machine")
    assert (hub.branches, hub.tags) == before
    # A tag that is no release of ours is somebody else's.
    hub.commits[hub.tags["v1"]].pop(MANIFEST)
    with pytest.raises(UsageError, match="never overwritten"):
        case.publish(spec={"to": TO}, root=tmp_path / "a third")


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_damage_on_the_way_is_noticed_before_anything_is_tagged(case: Case, hub: FakeHub, name: str) -> None:
    hub.damaged = name
    with pytest.raises(InfrastructureError, match=f"{name} in owner/name .* is not what was sent"):
        case.publish(spec={"to": TO})
    assert hub.tags == {}
    assert list(files(hub, "main")) == [".gitattributes"]
    hub.damaged = ""
    case.publish(spec={"to": TO})
    assert files(hub, "main") == files(hub, "v1")
    assert list(hub.branches) == ["main"]


@pytest.mark.parametrize(
    "call",
    [
        "create_repo",
        "list_repo_refs",
        "create_branch",
        "create_commit",
        "get_paths_info",
        "create_tag",
        "delete_branch",
    ],
)
def test_a_hub_that_fails_in_between_is_gone_on_with(case: Case, hub: FakeHub, call: str) -> None:
    hub.fails_at = call
    with pytest.raises(InfrastructureError, match="does not answer") as caught:
        case.publish(spec={"to": TO})
    assert "run the same command again" in caught.value.remedy
    hub.fails_at = ""
    case.publish(spec={"to": TO})
    assert files(hub, "main") == files(hub, "v1")
    assert list(hub.branches) == ["main"]


def test_a_token_in_the_environment_is_nowhere_in_the_release(
    case: Case, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789")
    case.publish(spec={"to": TO})
    everything: list[Any] = [*files(hub, "main").values()]
    assert not any(b"hf_planted" in data for data in everything)


def test_the_double_knows_what_the_real_one_knows(hub: FakeHub) -> None:
    with pytest.raises(TypeError, match="colour"):
        hub.create_repo("owner/name", colour="red")  # type: ignore[call-arg]
