"""An evaluation that somebody watches, and the A/A control, against the fake server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evals.control import control
from evals.run import evaluate
from evals.spec import ControlSpec, EngineSpec, EvaluateSpec
from evals.watching import Decision, EnoughError, Follower
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from tests.unit.evals.builders import text_row

Writer = Callable[..., Path]
N = 200


class Recording:
    """Asks backwards, and stops at the `at`-th look."""

    every = 16

    def __init__(self, decision: Decision = "go_on", at: int = 2) -> None:
        self.decision, self.at = decision, at
        self.looks: list[list[str]] = []
        self.why: dict[str, Any] = {}

    def order(self, task: str, ids: Sequence[str]) -> list[int]:
        return list(reversed(range(len(ids))))

    def look(self, task: str, new: Sequence[Mapping[str, Any]]) -> Decision:
        self.looks.append([row["id"] for row in new])
        if len(self.looks) < self.at or self.decision == "go_on":
            return "go_on"
        self.why = {"task": task}
        return self.decision


@pytest.fixture
def project(tmp_path: Path, write_jsonl: Writer) -> Path:
    for task, count in (("one", N), ("two", N - 1)):  # a share of 100 items that is no whole number
        write_jsonl(f"data/{task}.jsonl", [text_row(i, f"word {task} {i}") for i in range(count)])
        (tmp_path / f"{task}.yaml").write_text(f"task: {task}\nitems: data/{task}.jsonl\nscorer: exact_match\n")
    return tmp_path


def run(project: Path, env: Path, out: str, **more: Any) -> dict[str, Any]:
    (project / out).mkdir()
    spec = EvaluateSpec(
        tasks=(str(project / "one.yaml"), str(project / "two.yaml")), concurrency=8, retries=0, as_served=None
    )
    engine = EngineSpec(env=str(env), startup_timeout=30)
    return evaluate(spec, engine, model=project / "model", root=project, out=project / out, **more)


def ids(project: Path, out: str, task: str) -> list[str]:
    path = project / out / "records" / f"{task}.jsonl"
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_batches_come_in_the_order_asked(project: Path, fake_model: Path, fake_env: Path) -> None:
    watch = Recording()
    summary = run(project, fake_env, "out", watch=watch)
    assert [i for batch in watch.looks[:12] for i in batch] == [f"i{i}" for i in reversed(range(8, N))]
    assert ids(project, "out", "one") == [f"i{i}" for i in range(N)], "records keep the order of the items"
    assert summary["stopped"] == {}


@pytest.mark.parametrize("decision", ["task", "all"])
def test_enough_is_enough(project: Path, fake_model: Path, fake_env: Path, decision: Decision) -> None:
    watch = Recording(decision)
    summary = run(project, fake_env, "out", watch=watch)
    assert ids(project, "out", "one") == [f"i{i}" for i in range(N - 32, N)]
    assert (summary["tasks"]["one"]["n"], summary["tasks"]["one"]["of"]) == (32, N)
    assert ("two" in summary["tasks"]) == (decision == "task")
    assert summary["stopped"] == {"task": "two" if decision == "task" else "one"}


def test_clusters_are_shown_whole() -> None:
    items = [text_row(i, "x", cluster="ab"[i // 20 % 2] + str(i // 20)) for i in range(60)]
    from evals.items import Item

    watch = Recording()
    watch.order = lambda task, ids: list(range(len(ids)))  # type: ignore[method-assign]
    follower = Follower(watch, "t", [Item.model_validate(i) for i in items], lambda item, _: {"id": item.id})
    answers: dict[str, Any] = {}
    for item in items:
        answers[item["id"]] = object()
        follower.after(answers)
    assert [len(batch) for batch in watch.looks] == [20, 20]
    watch.decision, watch.at = "task", 0
    del answers[follower.items[-1].id]
    with pytest.raises(EnoughError):
        Follower(watch, "t", follower.items, lambda item, _: {"id": item.id}).after(answers)


def test_where_it_ends_does_not_depend_on_when_answers_came() -> None:
    """All answers are there at once when an attempt was killed after its last one, and before it had looked."""
    from evals.items import Item

    items = [Item.model_validate(text_row(i, "x")) for i in range(60)]
    ends = []
    for size in (1, 7, 60):
        watch = Recording("task")
        follower = Follower(watch, "t", items, lambda item, _: {"id": item.id})
        order = [item.id for item in follower.items]
        for end in range(size, 60 + size, size):
            with suppress(EnoughError):
                follower.after(dict.fromkeys(order[:end], ()))
            if follower.decision != "go_on":
                break
        ends.append((follower.shown, [len(batch) for batch in watch.looks]))
    assert ends == [(32, [16, 16])] * 3


def test_answers_that_come_in_after_the_end_change_nothing() -> None:
    """One answer was late and completed a batch; others were on their way when the asking was told to end."""
    from evals.items import Item

    watch = Recording("all")
    items = [Item.model_validate(text_row(i, "x")) for i in range(60)]
    follower = Follower(watch, "t", items, lambda item, _: {"id": item.id})
    order = [item.id for item in follower.items]
    late = order[20]
    follower.after(dict.fromkeys([name for name in order[:50] if name != late], ()))
    with pytest.raises(EnoughError):
        follower.after(dict.fromkeys(order[:50], ()))
    follower.after(dict.fromkeys(order[:51], ()))
    assert (follower.shown, follower.decision) == (32, "all")
    assert [len(batch) for batch in watch.looks] == [16, 16]


@pytest.mark.parametrize(("fickle", "items", "stable"), [(0, 101, True), (5, 2 * N - 1, False)])
def test_an_engine_that_does_not_agree_with_itself_is_caught(
    project: Path,
    fake_model: Path,
    fake_env: Path,
    monkeypatch: pytest.MonkeyPatch,
    fickle: int,
    items: int,
    stable: bool,
) -> None:
    """Every fifth answer is a toss-up: a perfect candidate gets no verdict from such an engine."""
    if fickle:
        monkeypatch.setenv("FAKE_VLLM", f"fickle:{fickle}")
    run(project, fake_env, "baseline")
    spec = EvaluateSpec(
        tasks=(str(project / "one.yaml"), str(project / "two.yaml")), concurrency=8, retries=0, control=ControlSpec()
    )
    (project / "control").mkdir()
    summary = control(
        spec,
        EngineSpec(env=str(fake_env), startup_timeout=30),
        model=project / "model",
        baseline=project / "baseline",
        root=project,
        out=project / "control",
    )
    assert (summary["items"], summary["concurrency"], summary["different_answers"] > 0) == (items, 2, not stable)
    gate = GateSpec.for_metrics(["one.exact_match"], max_drop=0.05)
    folders = [project / name / "records" for name in ("baseline", "baseline", "control")]
    verdict = judge(gate, folders[0], folders[1], control=folders[2])
    assert verdict.control is not None
    assert verdict.control.stable is stable
    if not stable:
        assert verdict.outcome == "INCONCLUSIVE"
        assert "unstable_engine" in verdict.reasons[0]
