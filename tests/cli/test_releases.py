"""`sqtool verify`, `sqtool releases` and `sqtool keygen`: what they print, and how they exit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.reliability import tampered
from tests.cli.conftest import Sqtool


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tampered.World:
    return tampered.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def releases(world: tampered.World, tmp_path: Path) -> Path:
    """A project's own releases, to be changed."""
    place = tmp_path / "artifacts" / "releases"
    shutil.copytree(world.good.parents[1], place, symlinks=True)
    return place


def test_a_good_release(sqtool_: Sqtool, world: tampered.World) -> None:
    said = sqtool_("verify", world.good, "--require-signature", "--key", f"{world.key}.pub")
    assert said.code == 0
    assert said.out == "VERIFIED: tiny v2: 14 files, verdict PASS, signature valid\n"
    said = sqtool_("verify", world.good)
    assert said.code == 0
    assert "note: the signature was not checked" in said.out


def test_a_tampered_release_names_the_first_wrong_thing_and_lists_all(
    sqtool_: Sqtool, world: tampered.World, tmp_path: Path
) -> None:
    copy = tampered.tampered(world, "two shards swapped", tmp_path / "copy")
    said = sqtool_("verify", copy, "--key", f"{world.key}.pub")
    assert said.code == 1
    first, *rest = said.out.splitlines()
    assert first.startswith("NOT VERIFIED: tiny v2: model-00001-of-00002.safetensors: changed")
    assert [line.split(":")[0].strip() for line in rest] == ["files", "files", "signature"]
    found = sqtool_("verify", copy, "--json").json
    assert (found["ok"], found["exit_code"], found["outcome"], found["signature"]) == (False, 1, "PASS", "not checked")
    assert [f["check"] for f in found["findings"]] == ["files", "files"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["gone"], "no such folder"),
        (["."], "has no MANIFEST.json"),
        ([".", "--key", "gone.pub"], "cannot be read"),
        ([".", "--require-signature"], "whose signature counts"),
        ([".", "--identity", "a@b.c"], "belong together"),
        ([".", "--key", "k", "--identity", "a", "--issuer", "b"], "give --key, or"),
        ([".", "--run", "gone"], "no such run"),
    ],
)
def test_usage(sqtool_: Sqtool, args: list[str], told: str) -> None:
    said = sqtool_("verify", *args)
    assert said.code == 2
    assert told in said.err


def test_control_characters_in_a_hostile_release_do_not_reach_the_terminal(
    sqtool_: Sqtool, world: tampered.World, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.good, copy)
    (copy / "\x1b[2Jcleared").write_text("x")
    said = sqtool_("verify", copy)
    assert said.code == 1
    assert "\x1b" not in said.out


def test_list_show_verify_rollback(sqtool_: Sqtool, releases: Path, world: tampered.World) -> None:
    said = sqtool_("releases", "list")
    assert said.code == 0
    lines = [line.split() for line in said.out.splitlines() if " tiny " in line]
    assert [line[:4] for line in lines] == [["tiny", "v1", "PASS", "signed"], ["*", "tiny", "v2", "PASS"]]
    assert sqtool_("releases", "list", "--json").json["releases"][1]["latest"] is True
    said = sqtool_("releases", "show", "tiny")
    assert (said.code, "recall.exact_match" in said.out) == (0, True)
    assert sqtool_("releases", "show", "tiny", "v1", "--json").json["verdict"] == "PASS"
    assert sqtool_("releases", "verify", "tiny", "--key", f"{world.key}.pub").code == 0
    assert sqtool_("releases", "verify", "tiny", "v1", "--key", f"{world.other_key}.pub").code == 1
    assert sqtool_("releases", "rollback", "tiny").out == "tiny: latest was v2, is v1\n"
    assert (releases / "tiny" / "latest").readlink() == Path("v1")
    said = sqtool_("releases", "rollback", "tiny")
    assert (said.code, "the first release" in said.err) == (2, True)
    assert sqtool_("releases", "rollback", "tiny", "--to", "v2", "--json").json == {
        "name": "tiny",
        "from": "v1",
        "to": "v2",
    }
    said = sqtool_("releases", "show", "tinny")
    assert (said.code, "Did you mean 'tiny'?" in said.err) == (2, True)


def test_latest_can_be_verified_by_its_link(sqtool_: Sqtool, releases: Path) -> None:
    assert sqtool_("verify", releases / "tiny" / "latest").code == 0


def test_no_releases(sqtool_: Sqtool) -> None:
    said = sqtool_("releases", "list")
    assert (said.code, "no releases yet" in said.out) == (0, True)
    assert sqtool_("releases", "list", "--json").json == {"releases": []}


def test_elsewhere(sqtool_: Sqtool, world: tampered.World) -> None:
    assert "v2" in sqtool_("releases", "list", "--dir", world.good.parents[1]).out


def test_keygen(sqtool_: Sqtool, tmp_path: Path) -> None:
    said = sqtool_("keygen", "release.key")
    assert said.code == 0
    assert "sqtool verify FOLDER --key release.key.pub" in said.out
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in said.out
    said = sqtool_("keygen", "release.key", "--json")
    assert (said.code, "never overwritten" in said.err) == (2, True)
    assert set(sqtool_("keygen", "other.key", "--json").json) == {"private", "public", "public_key_sha256"}


def test_a_recipes_rules_are_read_with_its_defaults() -> None:
    from sqtool.cli.verify import rules_of
    from sqtool.gate.spec import GateSpec

    text = "model: x\nquantize: {methods: [awq]}\n"
    assert rules_of(text) == json.loads(json.dumps(GateSpec().model_dump(mode="json")))
