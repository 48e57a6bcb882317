"""One arm while its server runs: warm-up, blocks of traffic, and the passes after them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from http.client import HTTPException
from typing import Any

from sqtool.progress import Progress, Task
from sqtool.speculate import scoring
from sqtool.speculate.arms import Arm
from sqtool.speculate.client import TIMED_OUT, Answer, Pass, Target, send_block, send_open
from sqtool.speculate.counters import Counters, fetch_metrics, read_settled
from sqtool.speculate.loads import Load
from sqtool.speculate.remote import UNCOUNTED, Server, UrlServer, describe_url
from sqtool.speculate.schedule import Turn
from sqtool.speculate.spec import SpeculateSpec
from sqtool.speculate.store import ArmFiles
from sqtool.speculate.traffic import Request, Traffic

LEAST_STREAK = 8
"""So many requests in a row without an answer, or one for each client, and the server is taken to hang."""
USUAL_CONCURRENCY = 16
GUARD_SECONDS = 0.1
GUARD_TICKS = 40


class Session:
    """An arm, its server and its files. `EngineError` from every method when the server dies, hangs or answers
    nothing; a single failed request is a measurement."""

    def __init__(
        self, arm: str, server: Server, spec: SpeculateSpec, traffic: Traffic, files: ArmFiles, seed: int
    ) -> None:
        self.arm, self.server, self.spec, self.traffic, self.files, self.seed = arm, server, spec, traffic, files, seed
        self.began = time.perf_counter()
        self.target = Target(
            server.base_url,
            server.api_key,
            server.served_name,
            spec.request_timeout,
            vllm=server.vllm if isinstance(server, UrlServer) else True,
            declared=isinstance(server, UrlServer),
        )
        self._before: Counters | None = None

    @property
    def concurrency(self) -> int:
        """Of the passes that are no load."""
        return min(self.spec.max_concurrency, default=USUAL_CONCURRENCY)

    def salt(self, what: str) -> str:
        """See `Target.body`."""
        return f"{self.arm} {what}"

    def warm_up(self) -> None:
        """Send the warm-up requests, whose answers count nowhere."""
        self.send(self.traffic.warmup, Pass(block=-1, salt=self.salt("warm-up")))

    def turn(self, load: Load, turn: Turn, task: Task) -> None:
        """Send one block of one load and keep what came."""
        requests = load.batches[turn.block]
        where = Pass(load.name, turn.round, turn.block, self.salt(f"{load.name} {turn.round}"))
        before = self.counters()
        answers, seconds = self.send(
            requests, where, concurrency=load.concurrency, arrivals=load.arrivals, on_answer=lambda _: task.advance()
        )
        counted, note = self.counters().since(before), ""
        if isinstance(self.server, UrlServer):
            counted, note = self.server.own(counted, answers)
        place = {request.id: at for at, request in enumerate(requests)}
        answers.sort(key=lambda answer: place[answer.id])
        by_id = {request.id: request for request in requests}
        for answer in answers:
            scoring.score(by_id[answer.id], answer)
        row = {
            "load": load.name,
            "round": turn.round,
            "block": turn.block,
            "kind": load.kind_of(turn.block),
            "seconds": seconds,
            "counters": counted.to_dict(),
            **({"note": note} if note else {}),
        }
        self.files.keep_block(answers, row)

    def send(
        self,
        requests: Sequence[Request],
        where: Pass,
        *,
        concurrency: int | None = None,
        arrivals: Sequence[float] | None = None,
        cut: Collection[str] = (),
        on_answer: Callable[[Answer], None] = lambda _: None,
    ) -> tuple[list[Answer], float]:
        """Send requests; their answers as they came, and the wall time in seconds."""
        answers: list[Answer] = []
        concurrency = concurrency or self.concurrency
        watch = _Watch(self.server, max(LEAST_STREAK, concurrency), self.spec.request_timeout)

        def keep(answer: Answer) -> None:
            if isinstance(self.server, UrlServer):
                self.server.require_declared(answer)
                answer.error = self.server.without_key(answer.error)
            answers.append(answer)
            on_answer(answer)
            if answer.id not in cut:
                watch.saw(answer)

        if arrivals is None:
            seconds = send_block(
                requests, self.target, where, concurrency=concurrency, began=self.began, on_answer=keep, cut=cut
            )
        else:
            seconds = send_open(requests, arrivals, self.target, where, began=self.began, on_answer=keep)
        watch.check([answer for answer in answers if answer.id not in cut])
        return answers, seconds

    def counters(self) -> Counters:
        """vLLM's counters once they stand still; empty ones where they cannot be read."""
        if isinstance(self.server, UrlServer) and self.server.uncounted:
            return UNCOUNTED
        try:
            return read_settled(lambda: fetch_metrics(self.server.base_url, self.server.api_key))
        except (OSError, HTTPException, ValueError, LookupError, ArithmeticError) as error:
            raise self.server.failure(f"/metrics does not answer ({error})") from error

    def sample(self, progress: Progress) -> None:
        """Answer some requests several times at a temperature, with seeds of this arm alone: two arms must be
        independent draws of what is claimed to be one distribution."""
        sampling = self.spec.sampling
        if sampling.requests == 0:
            return
        requests = random.Random(f"sampling {self.seed}").sample(
            self.traffic.requests, min(sampling.requests, len(self.traffic.requests))
        )
        rows: list[Mapping[str, Any]] = []
        total = sampling.samples * len(requests)
        with progress.task(f"speculate: {self.arm}, sampled answers", total=total) as task:
            for number in range(sampling.samples):
                drawn = random.Random(f"{self.arm} {number} {self.seed}").getrandbits(31)
                where = Pass(
                    salt=self.salt(f"sample {number}"),
                    sampling={"temperature": sampling.temperature, "seed": drawn},
                )
                answers, _ = self.send(requests, where, on_answer=lambda _: task.advance())
                rows += [
                    {"id": a.id, "sample": number, "text": a.text, "tool_calls": a.tool_calls}
                    for a in sorted(answers, key=lambda answer: answer.id)
                    if a.ok
                ]
        self.files.keep_samples(rows)


class _Watch:
    """Notices a server that died or hangs while requests are under way, so that nobody waits for all of them."""

    def __init__(
        self, server: Server, patience: int, timeout: float, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._server, self._patience, self._timeout, self._pause = server, patience, timeout, pause
        self._streak = 0

    def saw(self, answer: Answer) -> None:
        if answer.ok:
            self._streak = 0
            return
        self._server.require_alive()
        if answer.error.startswith(TIMED_OUT):
            self._streak += 1
            if self._streak >= self._patience:
                raise self._server.failure(
                    f"the server hangs: {self._streak} requests in a row got no answer within {self._timeout:g} s"
                )

    def check(self, answers: Sequence[Answer]) -> None:
        """A failed request is a measurement; a dead server, or one that answers nothing at all, is not."""
        failed = [answer for answer in answers if not answer.ok]
        if not failed:
            return
        self._server.require_alive()
        if not self._server.healthy():
            # The guard above a killed server needs a moment to see it; "died" says more than "stopped answering".
            for _ in range(GUARD_TICKS):
                self._pause(GUARD_SECONDS)
                self._server.require_alive()
            raise self._server.failure(f"the server stopped answering ({failed[0].error})")
        if len(failed) == len(answers):
            raise self._server.failure(
                f"every one of {len(answers)} requests failed, the first with: {failed[0].error}"
            )


def describe(arm: Arm, server: Server, memory: Mapping[str, Any], shares: str | None) -> dict[str, Any]:
    """What arm.json says of an arm."""
    facts = server.facts()
    shown = arm.config(shown=True)
    if "flags" in facts:
        facts["flags"] = _shown_flags(facts["flags"], shown)
    record = {
        "name": arm.name,
        "target": arm.target,
        "model": arm.model.name,
        "speculative_config": shown,
        "engine": facts,
        "start_seconds": facts.get("start_seconds"),
        "memory": dict(memory),
    }
    if isinstance(server, UrlServer):
        record |= describe_url(arm, server)
    return {**record, "shares_server_of": shares} if shares else record


def _shown_flags(flags: Sequence[str], config: Mapping[str, Any] | None) -> list[str]:
    """The server's arguments, which name the drafter by its place on this machine, as others may read them."""
    said = list(flags)
    if config is not None and "--speculative-config" in said[:-1]:
        said[said.index("--speculative-config") + 1] = json.dumps(config)
    return said
