"""Releases on other file systems: fsspec's memory, its local one, and ones that misbehave."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sqtool.errors import InfrastructureError, UsageError
from sqtool.release.check import check_release
from sqtool.release.manifest import MANIFEST
from sqtool.release.spec import ReleaseSpec

from .conftest import RECIPE, Case, check, make_case


@pytest.fixture(params=["memory", "local"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield f"local://{tmp_path / 'remote'}"
        return
    MemoryFileSystem.store.clear()
    yield "memory://bucket/releases"
    MemoryFileSystem.store.clear()


def stored(url: str) -> Any:
    fs, base = fsspec.core.url_to_fs(url)
    return fs, f"{base}/awq4"


def fetch(url: str, version: str, to: Path) -> Path:
    fs, home = stored(url)
    fs.get(f"{home}/{version}", str(to), recursive=True)
    return to


def test_what_arrives_is_the_release(case: Case, url: str, key: Path, tmp_path: Path) -> None:
    result = case.publish(spec={"to": url, "sign": {"key": str(key)}}, records=case.records)
    assert result["uploaded"] == f"{url}/awq4/v1"
    assert check(case.root / result["path"], key).ok, "the local copy is whole as well"
    assert check(fetch(url, "v1", tmp_path / "got"), key).signature == "valid"
    fs, home = stored(url)
    assert fs.cat_file(f"{home}/latest") == b"v1\n"
    assert not fs.exists(f"{home}/.v1.claim")


def test_a_second_version_moves_the_pointer_and_the_first_stays(case: Case, url: str) -> None:
    case.publish(spec={"to": url})
    case.recipe_text = RECIPE + "seed: 1\n"
    case.publish(spec={"to": url, "version": "v2"})
    fs, home = stored(url)
    assert fs.cat_file(f"{home}/latest") == b"v2\n"
    assert fs.exists(f"{home}/v1/{MANIFEST}")
    # The first once more: found, read back, and the pointer stays.
    case.recipe_text = RECIPE
    assert case.publish(spec={"to": url})["reused"]
    assert fs.cat_file(f"{home}/latest") == b"v2\n"


def test_a_version_there_is_never_overwritten(case: Case, url: str, tmp_path: Path) -> None:
    case.publish(spec={"to": url})
    case.recipe_text = RECIPE + "seed: 1\n"
    with pytest.raises(UsageError, match="never overwritten"):
        case.publish(spec={"to": url}, root=tmp_path / "another machine")
    fs, home = stored(url)
    assert b"seed: 1" not in fs.cat_file(f"{home}/v1/RECIPE.yaml")


def test_an_upload_that_broke_off_is_made_again(case: Case, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, home = stored(url)
    put = type(fs).put_file
    sent: list[str] = []

    def breaks(self: Any, local: str, remote: str, **options: Any) -> None:
        if len(sent) == 3:
            raise ConnectionResetError("the connection was reset")
        sent.append(remote)
        put(self, local, remote, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(fs), "put_file", breaks)
        with pytest.raises(InfrastructureError, match="connection was reset") as caught:
            case.publish(spec={"to": url})
    assert "run the same command again" in caught.value.remedy
    assert not fs.exists(f"{home}/v1/{MANIFEST}")
    assert not fs.exists(f"{home}/latest")
    assert case.publish(spec={"to": url})["uploaded"]
    assert fs.cat_file(f"{home}/latest") == b"v1\n"


def test_another_upload_of_the_same_version_stops_at_the_claim(case: Case, url: str) -> None:
    fs, home = stored(url)
    fs.makedirs(home, exist_ok=True)
    fs.pipe_file(f"{home}/.v1.claim", b"0" * 64)
    with pytest.raises(UsageError, match="being uploaded by somebody else"):
        case.publish(spec={"to": url})
    assert not fs.exists(f"{home}/v1/config.json")


@pytest.mark.parametrize("how", ["another error", "no condition"])
def test_stores_that_know_claims_only_half(
    case: Case, url: str, monkeypatch: pytest.MonkeyPatch, how: str, tmp_path: Path
) -> None:
    """A store whose refusal its client does not take for FileExistsError, and one that ignores the condition."""
    fs, home = stored(url)
    pipe = type(fs).pipe_file

    def half(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and how == "another error" and self.exists(path):
            raise OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")
        pipe(self, path, value, **options)

    monkeypatch.setattr(type(fs), "pipe_file", half)
    with monkeypatch.context() as patched:
        patched.setattr("sqtool.release.upload._point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(type(fs), "put_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            case.publish(spec={"to": url})
    assert fs.exists(f"{home}/.v1.claim")
    if how == "another error":
        case.recipe_text = RECIPE + "seed: 1\n"
        with pytest.raises(UsageError, match="being uploaded by somebody else"):
            case.publish(spec={"to": url}, root=tmp_path / "another machine")
        case.recipe_text = RECIPE
    case.publish(spec={"to": url})
    assert fs.cat_file(f"{home}/latest") == b"v1\n"


def test_a_claim_that_was_overwritten_ends_the_upload_before_the_manifest(
    case: Case, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, home = stored(url)
    put = type(fs).put_file

    def overwritten(self: Any, local: str, remote: str, **options: Any) -> None:
        put(self, local, remote, **options)
        self.pipe_file(f"{home}/.v1.claim", b"0" * 64)

    monkeypatch.setattr(type(fs), "put_file", overwritten)
    with pytest.raises(UsageError, match="being uploaded by somebody else"):
        case.publish(spec={"to": url})
    assert not fs.exists(f"{home}/v1/{MANIFEST}")


def test_an_upload_that_ended_before_the_claim_is_not_written_over(
    case: Case, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other publisher looked for the version, then this one uploaded it and removed its claim."""
    from sqtool.release import upload

    fs, home = stored(url)
    claim = upload._claim

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(upload, "_claim", claim)
        case.publish(spec={"to": url})
        claim(*arguments)

    monkeypatch.setattr(upload, "_claim", overtaken)
    other = make_case(tmp_path / "another machine")
    other.recipe_text = RECIPE + "seed: 1\n"
    with pytest.raises(UsageError, match="never overwritten"):
        other.publish(spec={"to": url})
    assert b"seed: 1" not in fs.cat_file(f"{home}/v1/RECIPE.yaml")
    assert not fs.exists(f"{home}/.v1.claim")


def test_killed_between_manifest_and_pointer(case: Case, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case.publish(spec={"to": url})
    case.recipe_text = RECIPE + "seed: 1\n"
    with monkeypatch.context() as patched:
        patched.setattr("sqtool.release.upload._point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            case.publish(spec={"to": url, "version": "v2"})
    fs, home = stored(url)
    assert fs.cat_file(f"{home}/latest") == b"v1\n"
    case.publish(spec={"to": url, "version": "v2"})
    assert fs.cat_file(f"{home}/latest") == b"v2\n"
    assert not fs.exists(f"{home}/.v2.claim")


@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST, "README.md"])
def test_a_store_that_damages_a_file_is_noticed_and_nothing_points_there(
    case: Case, url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fs, home = stored(url)
    put = type(fs).put_file

    def damages(self: Any, local: str, remote: str, **options: Any) -> None:
        put(self, local, remote, **options)
        if remote.endswith(f"v1/{name}"):
            self.pipe_file(remote, self.cat_file(remote)[:-1] + b"?")

    monkeypatch.setattr(type(fs), "put_file", damages)
    with pytest.raises(InfrastructureError, match="is not what was sent") as caught:
        case.publish(spec={"to": url})
    assert name in caught.value.message
    assert not fs.exists(f"{home}/latest")


def test_a_release_there_that_rotted_is_noticed(case: Case, url: str) -> None:
    case.publish(spec={"to": url})
    fs, home = stored(url)
    fs.pipe_file(f"{home}/v1/config.json", b"{}")
    with pytest.raises(InfrastructureError, match=r"config\.json is not what was sent"):
        case.publish(spec={"to": url})
    fs.rm_file(f"{home}/v1/config.json")
    with pytest.raises(InfrastructureError, match="sha256 nothing"):
        case.publish(spec={"to": url})


def test_a_file_url_is_a_folder(case: Case, tmp_path: Path) -> None:
    result = case.publish(spec={"to": f"file://{tmp_path / 'share'}"}, records=case.records)
    assert "uploaded" not in result
    place = tmp_path / "share" / "awq4"
    assert (place / "latest").is_symlink()
    assert check_release(place / "v1").ok


@pytest.mark.parametrize(
    ("to", "told"),
    [("nonesuch://bucket", "nonesuch"), ("s3://bucket/x", "s3fs")],
)
def test_protocols_that_are_not_installed(case: Case, to: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # what it loaded before
    with pytest.raises(UsageError, match=told):
        case.publish(spec={"to": to})
    place = case.releases / "awq4" / "v1"
    assert json.loads((place / MANIFEST).read_text())["name"] == "awq4", "the local release is whole"


@pytest.mark.parametrize("to", ["hf://name", "hf://", "hf://a/b/c", "zip://x::file:///y.zip", ""])
def test_destinations_that_are_none(to: str) -> None:
    with pytest.raises(ValueError, match="to"):
        ReleaseSpec(to=to)


def test_where_a_release_is_built() -> None:
    assert ReleaseSpec().folder == ReleaseSpec(to="s3://b/c").folder == Path("artifacts/releases")
    assert ReleaseSpec(to="file:///srv/x").folder == Path("/srv/x")
    assert ReleaseSpec.model_validate({"to": Path("out")}).elsewhere is None
