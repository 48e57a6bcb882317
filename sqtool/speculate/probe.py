"""Cancellation: some streams are cut off in the middle; the server must free what they held and recover."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from sqtool.speculate.client import HUNG_UP, Answer, Pass
from sqtool.speculate.counters import fetch_metrics, parse
from sqtool.speculate.remote import UrlServer
from sqtool.speculate.session import Session
from sqtool.speculate.spec import CancellationSpec
from sqtool.speculate.traffic import Request

PATIENCE = 10.0
"""Seconds that the server gets to drop the cut streams."""
INTERVAL = 0.05


def probe(session: Session, spec: CancellationSpec, *, pause: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Send the same requests three times: whole, with a share of the streams cut off, whole again. What probe.json
    holds; `e2e_p50_*` in seconds, of whole answers; `running_after_s` as [seconds after the last stream ended, requests
    that the server still counts as running].

    Then every stream that was cut off is asked again, as a client does whose connection was lost; `same_answer` counts
    retries that answered what the first, whole pass answered.
    """
    rng = random.Random(f"cancel {session.seed}")
    everything = session.traffic.requests
    requests = rng.sample(everything, min(spec.requests, len(everything)))
    cut = {request.id for request in rng.sample(requests, max(1, round(spec.share * len(requests))))}
    # The last stream is one of those cut off, so that it is still held when nothing follows.
    requests.sort(key=lambda request: request.id == min(cut))
    idle = session.counters()
    before = _send(session, requests, "probe before")
    during = _send(session, requests, "probe cut", cut)
    unseen = session.server.uncounted if isinstance(session.server, UrlServer) else ""
    running, usage = ([], None) if unseen else _settle(session, idle.kv_usage, pause)
    after = _send(session, requests, "probe after")
    dropped = [answer.id for answer in during if answer.error == HUNG_UP]
    said = {answer.id: answer.said for answer in before if answer.ok}
    again = _send(session, [request for request in requests if request.id in dropped], "probe retry")
    missing = {}
    if usage is None:
        missing["kv_usage"] = unseen or "the server reports no use of its KV cache"
    if unseen:
        missing["running"] = unseen
    if not dropped:
        missing["cancelled"] = "every stream that was to be cut off had ended before its second piece"
    return {
        "sent": len(requests),
        "cancelled": len(dropped),
        "running_after_s": running,
        "kv_usage_before": idle.kv_usage,
        "kv_usage_after": usage,
        "e2e_p50_before": _p50(before),
        "e2e_p50_during": _p50(during),
        "e2e_p50_after": _p50(after),
        "retries": {
            "retried": len(again),
            "answered": sum(answer.ok for answer in again),
            "same_answer": sum(answer.ok and said.get(answer.id) == answer.said for answer in again),
        },
        "missing": missing,
    }


def _send(session: Session, requests: Sequence[Request], what: str, cut: set[str] | None = None) -> list[Answer]:
    answers, _ = session.send(requests, Pass(salt=session.salt(what)), cut=cut or ())
    return answers


def _p50(answers: Sequence[Answer]) -> float | None:
    times = [answer.e2e_s for answer in answers if answer.ok and answer.e2e_s is not None]
    return median(times) if times else None


def _settle(
    session: Session, idle: float | None, pause: Callable[[float], None]
) -> tuple[list[list[float]], float | None]:
    """Watch the running requests until there are none and the cache is as empty as before, or patience ends."""
    start = time.monotonic()
    seen: list[list[float]] = []
    while True:
        try:
            now = parse(fetch_metrics(session.server.base_url, session.server.api_key))
        except OSError as error:
            raise session.server.failure(f"/metrics does not answer ({error})") from error
        spent = time.monotonic() - start
        seen.append([round(spent, 3), now.running])
        empty = now.kv_usage is None or idle is None or now.kv_usage <= idle
        if (now.running == 0 and empty) or spent > PATIENCE:
            return seen, now.kv_usage
        pause(INTERVAL)
