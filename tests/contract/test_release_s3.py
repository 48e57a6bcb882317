"""Releases in S3: the real s3fs speaks HTTP with moto's S3 server (conditional writes, multipart uploads)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqtool.cli import call
from sqtool.errors import InfrastructureError, UsageError
from sqtool.release.manifest import MANIFEST
from tests.unit.release.conftest import RECIPE, Case, make_case
from tests.unit.release.uploading import finished, start, uploaded

NEEDED = "needs s3fs and moto's server: pip install -e '.[dev]' -c constraints/sqtool.txt (`make setup`)"
s3fs = pytest.importorskip("s3fs", reason=NEEDED)
moto = pytest.importorskip("moto.server", reason=NEEDED)
boto3 = pytest.importorskip("boto3", reason=NEEDED)

TO = "s3://bucket/models"
HOME = "models/awq4"
SECRET = "standInForASecretAccessKey0123456789abcd"
MIB = 2**20


class Store:
    """The server, and a client that looks into it past s3fs."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the port of the last time; what was stored is still there."""
        self.server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    @property
    def env(self) -> dict[str, str]:
        """How users say where their S3-compatible store is."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AKIASTANDIN",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            **NOT_ELSEWHERE,
        }

    @property
    def client(self) -> Any:
        """boto3's, for what is to be seen or done behind the product's back."""
        return boto3.client("s3", **CLIENT, endpoint_url=self.env["AWS_ENDPOINT_URL"])

    def stored(self) -> list[str]:
        """Every key in the bucket."""
        return [item["Key"] for item in self.client.list_objects_v2(Bucket="bucket").get("Contents", [])]

    def read(self, key: str) -> bytes:
        """An object's bytes."""
        return bytes(self.client.get_object(Bucket="bucket", Key=key)["Body"].read())

    def fetch(self, version: str, to: Path) -> Path:
        """Download a release."""
        beginning = f"{HOME}/{version}/"
        for key in self.stored():
            if key.startswith(beginning):
                path = to / key.removeprefix(beginning)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.read(key))
        return to


# Nothing of a developer's own, no search for keys on a cloud's metadata address, no patience.
NOT_ELSEWHERE = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}
CLIENT = {"aws_access_key_id": "look", "aws_secret_access_key": "look", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store()
    yield store
    store.server.stop()


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty bucket, and the environment that says where."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    server.client.create_bucket(Bucket="bucket")
    yield server
    for key in server.stored():
        server.client.delete_object(Bucket="bucket", Key=key)
    server.client.delete_bucket(Bucket="bucket")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


@pytest.fixture
def on_put(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """`on_put(f)`: f(key) is called after every file that s3fs has sent."""
    put = s3fs.S3FileSystem._put_file

    def watch(then: Callable[[str], None]) -> None:
        async def wrapped(self: Any, local: str, remote: str, **options: Any) -> None:
            await put(self, local, remote, **options)
            then(remote.removeprefix("bucket/"))

        monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", wrapped)
        s3fs.S3FileSystem.clear_instance_cache()  # an instance binds its methods when it is made

    return watch


def test_a_release_arrives_and_verifies(case: Case, store: Store, tmp_path: Path) -> None:
    done = uploaded(case.root, TO, store.env, version="v1")
    assert done.returncode == 0, done.stderr
    assert f'"uploaded": "{TO}/awq4/v1"' in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert store.read(f"{HOME}/latest") == b"v1\n"
    assert not any(key.endswith(".claim") for key in store.stored())
    got = store.fetch("v1", tmp_path / "got")
    assert not any(SECRET.encode() in path.read_bytes() for path in got.rglob("*") if path.is_file())
    assert call(["verify", str(got)]) == 0
    (got / "config.json").write_text("{}")
    assert call(["verify", str(got)]) == 1


def test_a_second_version_moves_latest_and_the_first_is_read_back_again(case: Case, store: Store) -> None:
    case.publish(spec={"to": TO})
    case.recipe_text = RECIPE + "seed: 1\n"
    case.publish(spec={"to": TO, "version": "v2"})
    assert store.read(f"{HOME}/latest") == b"v2\n"
    case.recipe_text = RECIPE
    case.publish(spec={"to": TO})
    assert store.read(f"{HOME}/latest") == b"v2\n"
    store.client.put_object(Bucket="bucket", Key=f"{HOME}/v1/config.json", Body=b"{}")
    with pytest.raises(InfrastructureError, match=r"config\.json is not what was sent"):
        case.publish(spec={"to": TO})


def test_a_version_is_never_overwritten(case: Case, store: Store, tmp_path: Path) -> None:
    case.publish(spec={"to": TO})
    case.recipe_text = RECIPE + "seed: 1\n"
    with pytest.raises(UsageError, match="never overwritten"):
        case.publish(spec={"to": TO}, root=tmp_path / "another machine")
    assert b"seed: 1" not in store.read(f"{HOME}/v1/RECIPE.yaml")


@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST])
def test_an_object_that_changed_on_the_server_is_refused_and_latest_stays(
    case: Case, store: Store, on_put: Callable[..., None], name: str
) -> None:
    case.publish(spec={"to": TO})
    case.recipe_text = RECIPE + "seed: 1\n"
    damage = True

    def other_body(key: str) -> None:
        if damage and key == f"{HOME}/v2/{name}":
            body = store.read(key)
            store.client.put_object(Bucket="bucket", Key=key, Body=body[:-1] + bytes([body[-1] ^ 1]))

    on_put(other_body)
    with pytest.raises(InfrastructureError, match=f"{name} is not what was sent"):
        case.publish(spec={"to": TO, "version": "v2"})
    assert store.read(f"{HOME}/latest") == b"v1\n"
    if name != MANIFEST:  # a manifest that differs is another release: nothing is written over it
        damage = False
        case.publish(spec={"to": TO, "version": "v2"})
        assert store.read(f"{HOME}/latest") == b"v2\n"


def test_a_server_that_goes_away_in_between_is_gone_on_with(
    case: Case, store: Store, on_put: Callable[..., None], tmp_path: Path
) -> None:
    sent: list[str] = []

    def gone(key: str) -> None:
        sent.append(key)
        if len(sent) == 3:
            store.server.stop()

    on_put(gone)
    with pytest.raises(InfrastructureError, match="could not be uploaded") as caught:
        case.publish(spec={"to": TO})
    assert "run the same command again" in caught.value.remedy
    store.start()
    assert f"{HOME}/v1/{MANIFEST}" not in store.stored()
    assert f"{HOME}/latest" not in store.stored()
    case.publish(spec={"to": TO})
    assert store.read(f"{HOME}/latest") == b"v1\n"
    assert call(["verify", str(store.fetch("v1", tmp_path / "got"))]) == 0


def test_two_uploads_of_one_version_at_once_end_with_one_release(store: Store, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    for number, root in enumerate(roots):
        make_case(root)
        (root / "recipe.yaml").write_text(f"{RECIPE}seed: {number}\n")
    racing = [start(root, TO, store.env, version="v1") for root in roots]
    done = [finished(process) for process in racing]
    assert sorted(d.returncode for d in done) == [0, 2], [d.stderr for d in done]
    winner, loser = sorted(done, key=lambda d: d.returncode)
    assert "somebody else" in loser.stderr or "never overwritten" in loser.stderr
    assert call(["verify", str(store.fetch("v1", tmp_path / "got"))]) == 0
    assert store.read(f"{HOME}/v1/RECIPE.yaml").endswith(f"seed: {done.index(winner)}\n".encode())
    assert not any(key.endswith(".claim") for key in store.stored())


def test_another_upload_of_the_same_version_stops_at_the_claim(case: Case, store: Store) -> None:
    store.client.put_object(Bucket="bucket", Key=f"{HOME}/.v1.claim", Body=b"0" * 64)
    with pytest.raises(UsageError, match="being uploaded by somebody else"):
        case.publish(spec={"to": TO})
    assert store.stored() == [f"{HOME}/.v1.claim"]


def test_large_files_go_in_parts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_put: Callable[..., None]
) -> None:
    """As s3fs does from 100 MiB on; S3's smallest part is 5 MiB."""
    from sqtool.files import digest_folder

    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, **_: 5 * MIB)
    case = make_case(tmp_path)
    (case.checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * (11 * MIB // 256))
    case.edit_verdict(lambda v: v["bindings"].update(candidate_digest=digest_folder(case.checkpoint)))
    case.publish(spec={"to": TO})
    head = store.client.head_object(Bucket="bucket", Key=f"{HOME}/v1/model.safetensors")
    assert head["ETag"].strip('"').endswith("-3")
    assert store.read(f"{HOME}/latest") == b"v1\n"


def test_a_bucket_that_does_not_exist_is_not_made(case: Case, store: Store) -> None:
    with pytest.raises(UsageError, match="no bucket 'bukcet'"):
        case.publish(spec={"to": "s3://bukcet/models"})
    assert [bucket["Name"] for bucket in store.client.list_buckets()["Buckets"]] == ["bucket"]


def test_without_keys_the_remedy_says_so(case: Case, store: Store) -> None:
    env = {name: value for name, value in store.env.items() if "KEY" not in name}
    done = uploaded(case.root, TO, env, version="v1")
    assert done.returncode == 4
    assert "Unable to locate credentials" in done.stderr
    assert "set credentials that may write there" in done.stderr
    assert store.stored() == []
