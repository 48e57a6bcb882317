"""An upload to the hub as users start it: a process of its own, with HF_ENDPOINT and HF_TOKEN in its environment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqtool.cli import call
from tests.unit.release.conftest import Case, make_case
from tests.unit.release.hub_server import TOKEN, Hub, hub_server
from tests.unit.release.uploading import uploaded

TO = "hf://owner/name"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server("owner/name") as running:
        yield running


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path / "project")


def environment(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}


def test_a_release_arrives_and_the_token_is_sent_and_is_nowhere(case: Case, hub: Hub, tmp_path: Path) -> None:
    done = uploaded(case.root, TO, environment(hub), version="v1")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["uploaded"] == f"{hub.url}/owner/name/tree/v1"
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in done.stdout
    for place in (case.root, write(hub.files("v1"), tmp_path / "got")):
        assert not any(TOKEN.encode() in path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert call(["verify", str(tmp_path / "got")]) == 0
    assert hub.files("main") == hub.files("v1")


def test_a_connection_that_breaks_half_way_is_gone_on_with_by_the_same_command(case: Case, hub: Hub) -> None:
    hub.breaks, hub.broken = "/commit/upload/v1", 1
    done = uploaded(case.root, TO, environment(hub), version="v1")
    assert done.returncode == 4
    assert "run the same command again" in done.stderr
    assert TOKEN not in done.stderr
    assert (hub.tags, list(hub.files("main"))) == ({}, [".gitattributes"])
    done = uploaded(case.root, TO, environment(hub), version="v1")
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(asked.startswith("PUT /lfs/") for asked in hub.asked) == 2, "large files were sent by the first"
    assert hub.files("main") == hub.files("v1")


def test_a_file_that_is_stored_wrongly_is_refused_and_main_stays(case: Case, hub: Hub) -> None:
    hub.damaged = "model.safetensors"
    done = uploaded(case.root, TO, environment(hub), version="v1")
    assert done.returncode == 4
    assert "model.safetensors in owner/name" in done.stderr
    assert (hub.tags, list(hub.files("main"))) == ({}, [".gitattributes"])


def write(files: dict[str, bytes], to: Path) -> Path:
    for name, data in files.items():
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return to
