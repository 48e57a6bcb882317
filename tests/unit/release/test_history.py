"""The order of releases, and going back."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sqtool.errors import DataError, InfrastructureError, UsageError
from sqtool.files import write_json
from sqtool.release import history
from sqtool.release import publish as publish_module
from sqtool.release.describe import describe
from sqtool.release.manifest import MANIFEST

from .conftest import RECIPE, Case, check


@pytest.fixture
def three(case: Case) -> Case:
    """v1, v2, v3."""
    for version in ("v1", "v2", "v3"):
        case.recipe_text = f"{RECIPE}description: {version}\n"
        case.published(spec={"version": version})
    return case


def again(case: Case, version: str) -> dict[str, Any]:
    case.recipe_text = f"{RECIPE}description: {version}\n"
    return case.publish(spec={"version": version})


def test_list_in_the_order_of_publication(three: Case) -> None:
    found = history.releases(three.releases)
    assert [(r.version, r.sequence, r.latest) for r in found] == [("v1", 1, False), ("v2", 2, False), ("v3", 3, True)]
    assert {(r.name, r.outcome, r.signed, r.problem) for r in found} == {("awq4", "PASS", False, "")}
    assert history.releases(three.root / "gone") == []
    with pytest.raises(UsageError, match="no release called awq5") as caught:
        history.releases(three.releases, "awq5")
    assert caught.value.remedy == "Did you mean 'awq4'?"


def test_find(three: Case) -> None:
    assert history.find(three.releases, "awq4").version == "v3"
    assert history.find(three.releases, "awq4", "latest").version == "v3"
    assert history.find(three.releases, "awq4", "v1").version == "v1"
    with pytest.raises(UsageError, match="no version v4"):
        history.find(three.releases, "awq4", "v4")
    (three.releases / "awq4" / "latest").unlink()
    with pytest.raises(UsageError, match="no `latest`"):
        history.find(three.releases, "awq4")


def test_rollback_moves_only_the_pointer(three: Case) -> None:
    home = three.releases / "awq4"
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    left, now = history.rollback(three.releases, "awq4")
    assert (left.version, now.version, three.latest()) == ("v3", "v2", "v2")
    assert {p: p.read_bytes() for p in before} == before
    assert history.rollback(three.releases, "awq4")[1].version == "v1"
    with pytest.raises(UsageError, match="is the first release"):
        history.rollback(three.releases, "awq4")


def test_a_withdrawn_release_does_not_come_back_by_itself(three: Case) -> None:
    history.rollback(three.releases, "awq4")
    assert again(three, "v3")["reused"]
    assert three.latest() == "v2"
    assert [r.version for r in history.releases(three.releases) if r.withdrawn] == ["v3"]
    assert not again(three, "v4")["reused"]
    assert three.latest() == "v4"
    # Back over a withdrawn one.
    assert history.rollback(three.releases, "awq4")[1].version == "v2"


def test_going_forward_on_purpose(three: Case) -> None:
    history.rollback(three.releases, "awq4", "v1")
    assert {r.version for r in history.releases(three.releases) if r.withdrawn} == {"v2", "v3"}
    history.rollback(three.releases, "awq4", "v3")
    assert three.latest() == "v3"
    assert [r.version for r in history.releases(three.releases) if r.withdrawn] == ["v2"]
    with pytest.raises(UsageError, match="current release already"):
        history.rollback(three.releases, "awq4", "v3")


def test_no_rollback_to_a_release_that_was_changed(three: Case) -> None:
    (three.releases / "awq4" / "v2" / "config.json").write_text("{}")
    with pytest.raises(InfrastructureError, match=r"config\.json: changed"):
        history.rollback(three.releases, "awq4")
    assert three.latest() == "v3"


def test_a_record_of_rollbacks_that_was_cut_is_read_as_far_as_it_goes(three: Case) -> None:
    history.rollback(three.releases, "awq4")
    with (three.releases / "awq4" / history.ROLLBACKS).open("a") as handle:
        handle.write('{"from": "v2", "to"')
    assert history.withdrawn(three.releases / "awq4") == {"v3"}


def test_a_clock_that_runs_backwards_changes_no_order(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    again(case, "v1")

    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Past:
            return cls(1999, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(publish_module, "datetime", Past)
    again(case, "v2")
    assert case.latest() == "v2"
    assert again(case, "v1")["reused"]
    assert case.latest() == "v2"
    assert [r.version for r in history.releases(case.releases)] == ["v1", "v2"]
    assert check(case.releases / "awq4" / "v2").ok


def test_forged_time_does_not_make_an_old_release_the_latest(three: Case) -> None:
    path = three.releases / "awq4" / "v1" / MANIFEST
    manifest = json.loads(path.read_text())
    write_json(path, {**manifest, "created": "2999-01-01T00:00:00+00:00"})
    again(three, "v1")
    assert three.latest() == "v3"
    assert any("2999" in finding.message for finding in check(path.parent).findings)


def test_two_publishers_of_one_name_at_once(case: Case) -> None:
    """Both are whole, they have different places in the order, and `latest` is the later one."""
    results: dict[str, Any] = {}

    def publish(version: str) -> None:
        from sqtool.release.publish import publish as function
        from sqtool.release.spec import ReleaseSpec

        results[version] = function(
            ReleaseSpec(name="awq4", version=version),
            checkpoint=case.checkpoint,
            verdict=case.verdict,
            root=case.root,
            recipe_text=f"{RECIPE}description: {version}\n",
            records=case.records,
        )

    threads = [threading.Thread(target=publish, args=(f"v{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    found = history.releases(case.releases)
    assert [r.sequence for r in found] == [1, 2, 3, 4]
    assert case.latest() == found[-1].version
    assert all(check(r.folder).ok for r in found)
    assert not case.hidden()


def test_two_publishers_of_one_version_with_other_content(case: Case) -> None:
    """One wins, the other is told; nothing is mixed."""
    outcomes: list[str] = []

    def publish(text: str) -> None:
        from sqtool.release.publish import publish as function
        from sqtool.release.spec import ReleaseSpec

        try:
            function(
                ReleaseSpec(name="awq4", version="v1"),
                checkpoint=case.checkpoint,
                verdict=case.verdict,
                root=case.root,
                recipe_text=text,
                records=case.records,
            )
            outcomes.append("published")
        except UsageError as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=publish, args=(f"{RECIPE}seed: {n}\n",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(o == "published" for o in outcomes) == [False, True]
    assert any("never overwritten" in o for o in outcomes)
    assert check(case.releases / "awq4" / "v1").ok


def test_describe(three: Case) -> None:
    facts = describe(history.find(three.releases, "awq4", "v2"))
    assert (facts["verdict"], facts["signature"], facts["latest"]) == ("PASS", "none", False)
    assert facts["metrics"][0]["metric"] == "recall.exact_match"
    path = three.releases / "awq4" / "v2" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["digests"]
    write_json(path, manifest)
    with pytest.raises(DataError, match="no whole release"):
        describe(history.find(three.releases, "awq4", "v2"))


def test_a_folder_that_is_no_release_is_listed_with_its_problem(three: Case) -> None:
    (three.releases / "awq4" / "notes").mkdir()
    (found,) = (r for r in history.releases(three.releases) if r.version == "notes")
    assert "no such file" in found.problem
    assert Path(found.folder).name == "notes"
