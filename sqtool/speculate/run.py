"""The experiment: every arm a real `vllm serve`, all on the same frozen traffic; files as `store` and `plan.json` say.

Interleaved, all servers are up at once and take turns block by block, in an order drawn anew for each block; only one
is sent anything at a time. Otherwise one arm is measured whole before the next. The control arm (baseline_again) is
then a start of its own, the last one; interleaved it shares the baseline's server, so that it shows what machine and
engine vary, and not what a restart does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engine_env import VllmEnv, locate, resolve_env
from evals.engine_inputs import named_files
from evals.engines import engine_class
from evals.spec import EngineSpec, EvaluateSpec
from sqtool.errors import DataError, UsageError
from sqtool.files import canonical_json, sha256_text, write_json, write_text
from sqtool.progress import Progress, Task
from sqtool.speculate import store
from sqtool.speculate.analyse import analyse
from sqtool.speculate.arms import Arm, arms_of
from sqtool.speculate.counters import reports_per_request
from sqtool.speculate.fit import check_arms
from sqtool.speculate.loads import Load, loads_of, trace_of
from sqtool.speculate.memory import memory
from sqtool.speculate.probe import probe
from sqtool.speculate.quality import answer_tasks
from sqtool.speculate.remote import UrlServer, check_servers, naming
from sqtool.speculate.requestlog import load_requests, task_requests
from sqtool.speculate.schedule import Turn, interleaving, schedule, shared_utilization
from sqtool.speculate.servers import Servers
from sqtool.speculate.session import Session, describe
from sqtool.speculate.spec import CONTROL, FOUR, SpeculateSpec
from sqtool.speculate.store import ArmFiles
from sqtool.speculate.traffic import Request, Traffic, choose

TASKS = "tasks"
"""The word in `speculate.traffic` for the items of evaluate.tasks."""


def preflight(
    spec: SpeculateSpec,
    engine: EngineSpec,
    *,
    baseline: Path,
    candidate: Path,
    draft: Path | None,
    root: Path,
    evaluate: EvaluateSpec | None = None,
) -> tuple[Arm, ...]:
    """All arms, when nothing is known to fail: no drafter or one that does not fit, no traffic, a server that was said
    to run and does not answer. Raises otherwise.

    `candidate` may be a folder that does not exist yet; what is known of it then is the baseline's.
    """
    made = candidate if (candidate / "config.json").is_file() else baseline
    arms = arms_of(spec, engine, baseline=baseline, candidate=made, draft=draft, root=root)
    check_arms(arms)
    check_servers(arms)
    if spec.traffic == TASKS and evaluate is None:
        raise UsageError("speculate.traffic is `tasks`, and there is no evaluate section")
    if spec.traffic != TASKS and not (root / spec.traffic).is_file():
        raise DataError(
            root / spec.traffic,
            "no such traffic file (speculate.traffic)",
            remedy="Give a JSONL of requests, the word `tasks`, or set `speculate: {enabled: false}`.",
        )
    if spec.traffic != TASKS:  # the tasks' items are checked by the evaluation
        requests = read_requests(spec, root, evaluate)
        if spec.trace:
            trace_of(requests)
    return arms


def read_requests(spec: SpeculateSpec, root: Path, evaluate: EvaluateSpec | None) -> list[Request]:
    """The traffic that the sample is drawn from."""
    if spec.traffic == TASKS:
        if evaluate is None:
            raise UsageError("speculate.traffic is `tasks`, and there is no evaluate section")
        return task_requests(evaluate, root, spec.max_tokens)
    return load_requests(root / spec.traffic, spec.max_tokens)


def speculate(
    spec: SpeculateSpec,
    engine: EngineSpec,
    *,
    baseline: Path,
    candidate: Path,
    draft: Path | None,
    root: Path,
    out: Path,
    progress: Progress,
    seed: int,
    evaluate: EvaluateSpec | None = None,
    earlier: Path | None = None,
) -> dict[str, Any]:
    """Measure all arms into `out`: traffic.jsonl, plan.json, arms/<arm>/..., and speculate.json, which is returned.

    With `evaluate` the speculating arms of the four also answer its tasks. `earlier` is what an interrupted attempt
    left. Raises `EngineError` naming the arm and its log when a server does not start, dies, hangs or answers nothing;
    `UsageError` and `DataError` before any server starts.
    """
    arms = preflight(spec, engine, baseline=baseline, candidate=candidate, draft=draft, root=root, evaluate=evaluate)
    elsewhere = [arm for arm in arms if arm.url is not None]
    env = locate(resolve_env(engine, root)) if len(elsewhere) < len(arms) else None
    per_request = env is not None and reports_per_request(env.folder)
    if env is not None and not per_request:
        progress.note("speculate: this vLLM reports no acceptance per request; counting it around blocks of one kind")
    # Nobody knows beforehand whether a server that runs already reports acceptance with its answers.
    single = (env is not None and not per_request) or any(arm.speculates for arm in elsewhere)
    requests = read_requests(spec, root, evaluate)
    traffic = choose(requests, spec.requests, spec.warmup, seed, single_kind_blocks=single)
    loads = loads_of(spec, traffic, seed)
    interleaved, why = interleaving(spec, arms, env)
    turns = schedule([arm.name for arm in arms], loads, spec.repeats, seed, interleaved=interleaved)
    progress.note(f"speculate: {len(arms)} arms, {'interleaved' if interleaved else 'one after the other'} ({why})")
    for arm in elsewhere:
        progress.note(f"speculate: {arm.name} is asked at {arm.url}, a server that is not sqtool's")
    write_text(out / "traffic.jsonl", traffic.to_jsonl())
    key = _key(spec, traffic, arms, root, seed, evaluate, check_servers(arms), interleaved=interleaved)
    reused = store.take_over(earlier, out, key, turns, interleaved=interleaved)
    if reused:
        progress.note(f"speculate: {len(reused)} of {len(turns)} blocks are taken from the interrupted run")
    plan = {
        "key": key,
        "seed": seed,
        "interleaved": interleaved,
        "why": why,
        "arms": [arm.name for arm in arms],
        "elsewhere": {arm.name: arm.url for arm in elsewhere},
        "loads": [load.to_dict() for load in loads],
        "rounds": spec.repeats,
        "per_request_acceptance": per_request,
        "single_kind_blocks": traffic.single_kind_blocks,
        "schedule": [{**turn.to_dict(), "reused": turn in reused} for turn in turns],
    }
    write_json(out / store.PLAN, plan)
    experiment = _Experiment(
        spec, arms, {load.name: load for load in loads}, traffic, turns, frozenset(reused), env, evaluate,
        root, out, progress, seed, per_request, earlier,
    )  # fmt: skip
    if interleaved:
        experiment.interleaved()
    else:
        experiment.sequential()
    store.seal(out)
    report = analyse(out, spec, progress=progress)
    write_json(out / "speculate.json", report)
    return report


def _key(
    spec: SpeculateSpec,
    traffic: Traffic,
    arms: Sequence[Arm],
    root: Path,
    seed: int,
    evaluate: EvaluateSpec | None,
    servers: Mapping[str, Any],
    *,
    interleaved: bool,
) -> str:
    """Identifies a plan: what an interrupted attempt measured under another one is worth nothing here."""

    def files(folder: Path | None) -> list[Any]:
        # By names, sizes and times: reading a large model through would cost more than resuming saves.
        paths = [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
        return [(p.relative_to(folder or p).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]

    models = {str(folder): files(folder) for arm in arms for folder in (arm.model, arm.drafter) if folder is not None}
    own = [arm for arm in arms if arm.url is None]
    named = sorted({path for arm in own for path in named_files(arm.engine, root)})
    value = {
        "spec": spec.measuring.model_dump(mode="json"),
        "evaluate": None if evaluate is None else evaluate.model_dump(mode="json"),
        "traffic": traffic.sha256,
        "arms": [[arm.name, str(arm.model), arm.config(), arm.engine.model_dump(mode="json")] for arm in arms],
        "models": models,
        "engines": {arm.name: engine_class(arm.engine).fingerprint(arm.engine, root) for arm in own},
        "named": [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in named],
        "servers": dict(servers),
        "seed": seed,
        "interleaved": interleaved,
    }
    return sha256_text(canonical_json(value))


@dataclass(frozen=True)
class _Experiment:
    spec: SpeculateSpec
    arms: tuple[Arm, ...]
    loads: dict[str, Load]
    traffic: Traffic
    turns: tuple[Turn, ...]
    reused: frozenset[Turn]
    env: VllmEnv | None
    evaluate: EvaluateSpec | None
    root: Path
    out: Path
    progress: Progress
    seed: int
    per_request: bool
    earlier: Path | None

    def servers(self) -> Servers:
        device = "" if self.env is None else self.env.device
        return Servers(self.out, self.root, self.progress, per_request=self.per_request, device=device)

    def session(self, servers: Servers, arm: Arm, server: str) -> Session:
        files = ArmFiles(self.out, arm.name)
        session = Session(arm.name, servers[server], self.spec, self.traffic, files, self.seed)
        with naming(arm.name, servers.log(server)):
            session.warm_up()
        return session

    def todo(self, arm: str | None = None) -> list[Turn]:
        return [turn for turn in self.turns if turn not in self.reused and arm in (None, turn.arm)]

    def work(self, turns: Sequence[Turn]) -> int:
        """Requests of some turns."""
        return sum(len(self.loads[turn.load].batches[turn.block]) for turn in turns)

    def sequential(self) -> None:
        for arm in self.arms:
            if ArmFiles(self.out, arm.name).finished:
                continue
            turns = self.todo(arm.name)
            with self.servers() as servers:
                servers.start([arm], {})
                session = self.session(servers, arm, arm.name)
                with self.progress.task(f"speculate: {arm.name}", total=self.work(turns)) as task:
                    for turn in turns:
                        self.turn(servers, session, turn, arm.name, task)
                self.finish(servers, session, arm, arm.name)

    def interleaved(self) -> None:
        todo = [arm for arm in self.arms if not ArmFiles(self.out, arm.name).finished]
        # The control is asked of the baseline's server, so it needs that one and none of its own.
        home = {arm.name: "baseline" if arm.name == CONTROL else arm.name for arm in todo}
        needed = [arm for arm in self.arms if arm.name in home.values()]
        turns = self.todo()
        with self.servers() as servers:
            servers.start(needed, shared_utilization(needed, self.env))
            sessions = {arm.name: self.session(servers, arm, home[arm.name]) for arm in todo}
            with self.progress.task("speculate: arms in turn", total=self.work(turns)) as task:
                for turn in turns:
                    task.describe(f"speculate: {turn.load}, block {turn.block + 1}, {turn.arm}")
                    self.turn(servers, sessions[turn.arm], turn, home[turn.arm], task)
            for server in needed:
                for arm in todo:
                    if home[arm.name] == server.name:
                        self.finish(servers, sessions[arm.name], arm, server.name)
                servers.stop(server.name)

    def turn(self, servers: Servers, session: Session, turn: Turn, server: str, task: Task) -> None:
        with naming(turn.arm, servers.log(server)):
            session.turn(self.loads[turn.load], turn, task)

    def finish(self, servers: Servers, session: Session, arm: Arm, home: str) -> None:
        """The passes after the traffic, and arm.json, which says that the arm is finished."""
        server, files = session.server, session.files
        # Without a start of its own, the control is asked of the baseline's server: here, or where it runs already.
        own = "baseline" if arm.name == CONTROL and arm.url is not None else arm.name
        shared = home if home != arm.name else own if own != arm.name else None
        with naming(arm.name, servers.log(home)):
            # Before the tasks are asked, which may press harder than the traffic did.
            used = self.memory(arm, session)
            if arm.name in FOUR and arm.speculates and self.evaluate is not None:
                answer_tasks(
                    arm,
                    server,
                    files,
                    self.evaluate,
                    items=self.spec.quality.items,
                    root=self.root,
                    progress=self.progress,
                    seed=self.seed,
                    earlier=None if self.earlier is None else self.earlier / "arms" / arm.name,
                )
            if arm.name in (*FOUR, CONTROL):
                session.sample(self.progress)
            if self.spec.cancellation is not None and arm.name != CONTROL:
                with self.progress.task(f"speculate: {arm.name}, cut-off streams"):
                    files.keep_probe(probe(session, self.spec.cancellation))
            if isinstance(server, UrlServer):
                server.require_unchanged()
            files.finish(describe(arm, server, used, shared))

    def memory(self, arm: Arm, session: Session) -> dict[str, Any]:
        """What the arm's server takes of this machine."""
        if self.env is None or arm.url is not None:
            return {}
        return memory(
            arm,
            log=session.server.log_text(),
            flags=[str(word) for word in session.server.facts().get("flags", ())],
            counters=session.counters(),
            pid=session.server.pid,
            device=self.env.device,
        )
