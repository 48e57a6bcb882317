"""A few cases of benchmarks/reliability/fuzz.py, the same ones each time; the script tries thousands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.reliability.fuzzing import answers, headers, recipes, records, releases, rollouts

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
needs_models = pytest.mark.skipif(
    not (recipes.CHECKOUT / "artifacts/reference/target/config.json").is_file(), reason="no reference model here"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipes.project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def server() -> Iterator[answers.Server]:
    with answers.serving() as server:
        yield server


@needs_models
def test_shipped_recipes_are_accepted_as_they_are(root: Path) -> None:
    ending = recipes.attempt(recipes.SHIPPED[0].read_bytes(), root)
    assert not ending.fault


@needs_models
@FEW
@given(data=recipes.cases())
def test_recipes(root: Path, data: bytes) -> None:
    assert recipes.attempt(data, root).fault == ""


@FEW
@given(data=records.cases())
def test_records(root: Path, data: bytes) -> None:
    assert records.attempt(data, root).fault == ""


@FEW
@given(case=headers.cases())
def test_headers(tmp_path_factory: pytest.TempPathFactory, case: headers.Case) -> None:
    folder = tmp_path_factory.getbasetemp() / "headers"
    folder.mkdir(exist_ok=True)
    assert headers.attempt(case, folder).fault == ""


@FEW
@given(case=answers.cases())
def test_answers_of_servers(server: answers.Server, case: answers.Case) -> None:
    assert answers.attempt(case, server).fault == ""


@FEW
@given(data=rollouts.cases())
def test_logs_of_production(root: Path, data: bytes) -> None:
    assert rollouts.attempt(data, root).fault == ""


def test_releases(tmp_path: Path) -> None:
    good = releases.release(tmp_path)

    @FEW
    @given(case=releases.cases(good))
    def changed(case: releases.Case) -> None:
        assert releases.attempt(case, good).fault == ""

    changed()
    unseen = releases.Case("model.safetensors.index.json", b"{}", fitted=True)
    assert releases.attempt(unseen, good).outcome == "verify: not verified"


@pytest.mark.parametrize("data", [b"name: \xff", b"a: [" * 9999, b"quantize: {methods: 7}\n"])
def test_a_fault_would_be_seen(data: bytes, root: Path) -> None:
    assert recipes.attempt(data, root).outcome.startswith("load: refused")
