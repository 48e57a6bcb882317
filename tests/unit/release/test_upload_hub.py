"""Releases on the Hugging Face hub: the real huggingface_hub speaks HTTP with a stand-in of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import are_progress_bars_disabled

from sqtool.errors import InfrastructureError, UsageError
from sqtool.files import digest_folder
from sqtool.release import upload_hub
from sqtool.release.manifest import MANIFEST

from .conftest import RECIPE, Case, check
from .hub_server import RETRIES, TOKEN, Answer, Hub, Stored, hub_server

TO = "hf://owner/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without any repository yet. The client read its settings at import, so they are set in it."""
    with hub_server("owner/name") as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The client waits longer and longer between its tries.
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        close_session()
        yield running
        close_session()


def fetch(hub: Hub, revision: str, to: Path) -> Path:
    for name, data in hub.files(revision).items():
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return to


def test_what_arrives_is_the_release(case: Case, hub: Hub, key: Path, tmp_path: Path) -> None:
    result = case.publish(spec={"to": TO, "sign": {"key": str(key)}}, records=case.records)
    assert result["uploaded"] == f"{hub.url}/owner/name/tree/v1"
    assert hub.private is True
    assert list(hub.branches) == ["main"]
    assert hub.files("main") == hub.files("v1")
    found = check(fetch(hub, "v1", tmp_path / "got"), key)
    assert (found.ok, found.signature) == (True, "valid")


def test_every_byte_is_read_back_before_the_tag_and_large_files_are_sent_once(case: Case, hub: Hub) -> None:
    case.publish(spec={"to": TO})
    tagged = next(i for i, asked in enumerate(hub.asked) if "/tag/" in asked)
    moved = hub.asked.index("POST /api/models/owner/name/commit/main")
    read = [asked for asked in hub.asked[:tagged] if asked.startswith("GET /owner/name/resolve/")]
    sent = set(hub.files("v1")) - {".gitattributes"}
    assert {asked.split("/", 5)[5] for asked in read} == sent
    assert tagged < moved < hub.asked.index("DELETE /api/models/owner/name/branch/upload/v1")
    assert sum(asked.startswith("PUT /lfs/") for asked in hub.asked) == len(hub.lfs) == 2
    assert not any(asked.endswith(".safetensors") for asked in hub.asked[moved:])


def test_files_that_are_large_go_before_the_commit(case: Case, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_hub, "ALONE", 1000)
    case.publish(spec={"to": TO})
    first = hub.asked.index("POST /api/models/owner/name/commit/upload/v1")
    assert sum("preupload/upload/v1" in asked for asked in hub.asked[:first]) > 1
    assert hub.files("main") == hub.files("v1")


def test_the_client_draws_no_bars_of_its_own(case: Case, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    before = are_progress_bars_disabled()
    case.publish(spec={"to": TO})
    assert capfd.readouterr() == ("", "")
    assert are_progress_bars_disabled() == before


def test_a_public_repository(case: Case, hub: Hub) -> None:
    case.publish(spec={"to": TO, "private": False})
    assert hub.private is False


def test_main_holds_only_the_newest_and_tags_keep_the_others(case: Case, hub: Hub) -> None:
    (case.checkpoint / "only-in-v1.json").write_text("{}")
    case.edit_verdict(lambda v: v["bindings"].update(candidate_digest=digest_folder(case.checkpoint)))
    case.publish(spec={"to": TO})
    (case.checkpoint / "only-in-v1.json").unlink()
    case.edit_verdict(lambda v: v["bindings"].update(candidate_digest=digest_folder(case.checkpoint)))
    case.publish(spec={"to": TO, "version": "v2"})
    assert "only-in-v1.json" in hub.files("v1")
    assert "only-in-v1.json" not in hub.files("main")
    assert ".gitattributes" in hub.files("main")


def test_again_finds_the_tag_and_reads_it_back(case: Case, hub: Hub) -> None:
    case.publish(spec={"to": TO})
    commits = len(hub.commits)
    hub.asked.clear()
    case.publish(spec={"to": TO})
    assert len(hub.commits) == commits
    assert any(asked.endswith("/v1/model.safetensors") for asked in hub.asked)


def test_a_version_is_never_overwritten(case: Case, hub: Hub, tmp_path: Path) -> None:
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


def test_a_hub_that_is_down_is_no_other_content(case: Case, hub: Hub) -> None:
    case.publish(spec={"to": TO})
    hub.fails = f"resolve/v1/{MANIFEST}"
    with pytest.raises(InfrastructureError, match="Service Temporarily Unavailable"):
        case.publish(spec={"to": TO})


def test_an_answer_of_somebody_else_is_no_fault_of_the_recipe(
    case: Case, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's page instead of JSON is a ValueError of the client."""
    monkeypatch.setattr("tests.unit.release.hub_server._refs", lambda _: Answer(200, b"<html>Log in first</html>"))
    with pytest.raises(InfrastructureError, match="Expecting value"):
        case.publish(spec={"to": TO})


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_damage_on_the_way_is_noticed_before_anything_is_tagged(case: Case, hub: Hub, name: str) -> None:
    hub.damaged = name
    with pytest.raises(InfrastructureError, match=f"{name} in owner/name .* is not what was sent"):
        case.publish(spec={"to": TO})
    assert hub.tags == {}
    assert list(hub.files("main")) == [".gitattributes"]
    hub.damaged = ""
    hub.heal()
    case.publish(spec={"to": TO})
    assert hub.files("main") == hub.files("v1")
    assert list(hub.branches) == ["main"]


def test_a_file_that_the_hub_lost_is_noticed(case: Case, hub: Hub) -> None:
    case.publish(spec={"to": TO})
    hub.commits[hub.tags["v1"]].pop("config.json")
    with pytest.raises(InfrastructureError, match=r"config\.json .*sha256 nothing"):
        case.publish(spec={"to": TO})


def test_a_hash_that_the_hub_lists_wrongly_is_noticed(case: Case, hub: Hub) -> None:
    case.publish(spec={"to": TO})
    hub.commits[hub.tags["v1"]]["model.safetensors"] = Stored(b"other", oid="0" * 64)
    with pytest.raises(InfrastructureError, match=f"sha256 {'0' * 64}"):
        case.publish(spec={"to": TO})


REQUESTS = [
    "repos/create",
    "/refs$",
    "POST .*/branch/",
    "/revision/upload",
    "/tree/",
    "validate-yaml",
    "/preupload/",
    "objects/batch",
    "PUT /lfs/",
    "/commit/upload",
    "/paths-info/",
    "/resolve/.*README",
    "/tag/",
    "/commit/main",
    "DELETE .*/branch/",
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_connection_that_breaks_is_gone_on_with(case: Case, hub: Hub, request_: str) -> None:
    hub.breaks, hub.broken = request_, 10 * RETRIES
    with pytest.raises(InfrastructureError, match="could not be uploaded") as caught:
        case.publish(spec={"to": TO})
    assert "run the same command again" in caught.value.remedy
    assert hub.broken < 10 * RETRIES
    hub.broken = 0
    case.publish(spec={"to": TO})
    assert hub.files("main") == hub.files("v1")
    assert list(hub.branches) == ["main"]


@pytest.mark.parametrize("request_", ["repos/create", "POST .*/branch/", "/commit/upload", "/tag/", "/commit/main"])
def test_an_answer_that_got_lost_is_gone_on_with(case: Case, hub: Hub, request_: str) -> None:
    hub.mute = request_
    with pytest.raises(InfrastructureError, match="could not be uploaded"):
        case.publish(spec={"to": TO})
    case.publish(spec={"to": TO})
    assert hub.files("main") == hub.files("v1")
    assert list(hub.branches) == ["main"]


def test_a_server_that_is_busy_for_a_moment_is_asked_again(case: Case, hub: Hub) -> None:
    hub.breaks, hub.broken = "PUT /lfs/", 2
    case.publish(spec={"to": TO})
    assert hub.broken == 0
    assert hub.files("main") == hub.files("v1")


def test_two_uploads_at_once_end_with_one_release(case: Case, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    real = upload_hub._read_back
    other = {**hub.files("main")} if hub.branches else {}

    def overtaken(api: object, repo: str, revision: str, *arguments: object, **options: object) -> None:
        real(api, repo, revision, *arguments, **options)  # type: ignore[arg-type]
        hub.tags.setdefault("v1", hub.commit({n: Stored(d) for n, d in {**other, MANIFEST: b"{}"}.items()}))

    monkeypatch.setattr(upload_hub, "_read_back", overtaken)
    with pytest.raises(InfrastructureError, match="exists already"):
        case.publish(spec={"to": TO})
    assert list(hub.files("main")) == [".gitattributes"]


def test_a_token_that_may_not_write(case: Case, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(InfrastructureError, match="Invalid username or password") as caught:
        case.publish(spec={"to": TO})
    assert "credentials" in caught.value.remedy
    assert "x" * 34 not in caught.value.message + caught.value.remedy


def test_a_name_that_cannot_be_a_repository(case: Case, hub: Hub) -> None:
    with pytest.raises(UsageError, match=r"release\.to: .*owner/na--me"):
        case.publish(spec={"to": "hf://owner/na--me"})
