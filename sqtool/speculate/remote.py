"""An arm's server that runs already: sqtool asks it, and neither starts nor stops it.

What cannot be seen through its address is missing, with the reason; and nothing that it answers is read unless it is
the model that the recipe declares: at the start, with each answer, and at the end of the arm.
"""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from evals.engines.openai import PATIENCE, Keys, key_of, look
from evals.spec import EngineSpec
from sqtool.errors import EngineError, UsageError
from sqtool.hygiene import REMOVED
from sqtool.speculate.arms import Arm
from sqtool.speculate.client import OTHER_MODEL, Answer
from sqtool.speculate.counters import Counters, fetch_metrics, parse
from sqtool.speculate.spec import CONTROL

NOT_OURS = "the server runs already and is not sqtool's"
UNSEEN = {
    "start_seconds": f"{NOT_OURS}: it was not started here",
    "kernels": f"{NOT_OURS}: its log, which names them, cannot be read",
    "flags": f"{NOT_OURS}: its arguments cannot be read",
}
_MEMORY = ("weights_bytes", "draft_bytes", "kv_cache_tokens", "kv_cache_bytes", "peak_bytes")
UNCOUNTED = Counters(None, {}, 0.0)
OTHERS_SHARE = 0.01
"""Tokens beyond those of the answers, as a share of them, from which on somebody else is taken to be asking too."""
_MODEL = re.compile(r'^vllm:[^\n]*?\bmodel_name="([^"]*)"', re.MULTILINE)
_PROBE_SECONDS = 5.0


class Server(Protocol):
    """What a session needs of a server, whoever started it."""

    @property
    def base_url(self) -> str: ...
    @property
    def api_key(self) -> str: ...
    @property
    def served_name(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def facts(self) -> dict[str, Any]: ...
    def log_text(self) -> str: ...
    def healthy(self, timeout: float = ...) -> bool: ...
    def require_alive(self) -> None: ...
    def failure(self, what: str) -> EngineError: ...


class UrlServer:
    """Context manager over an arm's server that runs already; leaving it leaves the server running.

    `__enter__` raises `UsageError` without the key or when the server does not draft as the recipe says, and
    `EngineError` when it does not answer or does not have the model.
    """

    pid = None

    def __init__(self, arm: Arm) -> None:
        assert arm.url is not None
        assert arm.engine.model is not None
        self.arm, self.spec, self.base_url, self.served_name = arm, arm.engine, arm.url, arm.engine.model
        self.keys = keys_of("baseline" if arm.name == CONTROL else arm.name)
        self.api_key = ""
        self.vllm = False
        """Whether it is a vLLM server, which takes vLLM's own parameters."""
        self.uncounted = ""
        """Why its counters cannot be read; empty when they can."""
        self._said: dict[str, Any] = {}

    def __enter__(self) -> UrlServer:
        self.api_key = key_of(self.spec, self.keys)
        self._said = look(self.spec, self.keys)
        counters = self._counters()
        self.vllm = counters is not None or self._said["served"].get("owned_by") == "vllm"
        if counters is not None:
            self._check_drafting(counters)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _counters(self) -> Counters | None:
        where = f"{self.base_url}/metrics"
        try:
            text = fetch_metrics(self.base_url, self.api_key)
            counters = parse(text) if "vllm:" in text else None
        except urllib.error.HTTPError as error:
            error.close()
            self.uncounted = f"{where} answers with status {error.code}"
            return None
        except (OSError, HTTPException, ValueError, LookupError, ArithmeticError) as error:
            self.uncounted = f"{where} cannot be read ({self.without_key(str(error))[:200]})"
            return None
        names = sorted(set(_MODEL.findall(text)))
        if counters is None:
            self.uncounted = f"{where} is not vLLM's"
        elif len(names) > 1:
            self.uncounted = f"{where} counts several models ({', '.join(names)})"
            counters = None
        elif names and names != [self.served_name]:
            self.uncounted = f"{where} counts for {names[0]!r}"
            counters = None
        else:
            self.uncounted = ""
        return counters

    def _check_drafting(self, counters: Counters) -> None:
        """`UsageError` when the counters show another drafting than the recipe declares."""
        drafts, counted = self.arm.drafts, counters.speculation
        where = f"speculate.arms.{self.arm.name}"
        if drafts is None and counted is not None:
            raise UsageError(
                f"{where}: the server at {self.base_url} speculates, and the recipe says that it does not",
                remedy="Say with `speculative:` how it drafts, or start it without --speculative-config.",
            )
        if drafts is not None and counted is None:
            raise UsageError(
                f"{where}: the server at {self.base_url} does not speculate, and the recipe says that it does",
                remedy="Start it with --speculative-config, or say `speculative: false`.",
            )
        if drafts is None or counted is None:
            return
        tokens = len(counted.per_position)
        if tokens and tokens != drafts.num_speculative_tokens:
            raise UsageError(
                f"{where}: the server at {self.base_url} drafts {tokens} tokens each time, and the recipe says "
                f"{drafts.num_speculative_tokens}",
                remedy=f"Write `num_speculative_tokens: {tokens}` where the recipe says how this arm drafts.",
            )

    def facts(self) -> dict[str, Any]:
        """What the server says of itself, in the form of `engine: {kind: openai}`."""
        return dict(self._said)

    def log_text(self) -> str:
        """Nothing: the log is the server's own."""
        return ""

    def healthy(self, timeout: float = _PROBE_SECONDS) -> bool:
        """Whether it still lists the declared model."""
        try:
            look(self.spec, self.keys, patience=timeout)
        except EngineError:
            return False
        return True

    def require_alive(self) -> None:
        """`EngineError` when nobody answers at the address any more. One that answers late is not dead yet."""
        import httpx

        try:
            httpx.get(
                f"{self.base_url}/v1/models",
                headers={"Authorization": f"Bearer {self.api_key}"},
                timeout=_PROBE_SECONDS,
                trust_env=False,
            )
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
            raise self.failure(f"the server at {self.base_url} died ({type(error).__name__}: {error})") from None
        except httpx.HTTPError:
            return

    def failure(self, what: str) -> EngineError:
        """An `EngineError` that says `what` and where, without the key."""
        said = self.without_key(what)
        said = said if self.base_url in said else f"{said}, at {self.base_url}"
        return EngineError(
            said,
            remedy="sqtool did not start this server and has no log of it: look at its own. When it answers as "
            f"{self.served_name!r} again, the same command goes on with what is there.",
        )

    def without_key(self, text: str) -> str:
        """A text of others, which may repeat the key that it was sent."""
        return text if self.spec.api_key_env is None else text.replace(self.api_key, REMOVED)

    def require_declared(self, answer: Answer) -> None:
        """`EngineError` when another model has answered."""
        if answer.error.startswith(OTHER_MODEL):
            raise self.failure(
                f"{self.base_url} was asked for {self.served_name!r} and {answer.error}; if that is the right one, "
                f"declare this name in {self.keys.model}"
            )

    def require_unchanged(self) -> None:
        """`EngineError` when it is not the server any more that it was at the beginning."""
        now = look(self.spec, self.keys)
        if now != self._said:
            raise self.failure(f"the server was replaced while it was measured ({difference(self._said, now)})")

    def own(self, counted: Counters, answers: Sequence[Answer]) -> tuple[Counters, str]:
        """What was counted, and why it cannot be used: then the counts are empty. Counters are of the whole server,
        whoever asked it."""
        if self.uncounted:
            return UNCOUNTED, self.uncounted
        tokens = counted.others.get("generation_tokens")
        ours = sum(answer.completion_tokens or 0 for answer in answers)
        if tokens is not None and all(answer.ok for answer in answers) and tokens > ours * (1 + OTHERS_SHARE):
            return UNCOUNTED, f"others asked the server too: it counted {tokens:.0f} tokens, and {ours} were ours"
        return counted, ""


def keys_of(arm: str) -> Keys:
    """How a recipe calls what concerns the server of an arm."""
    where = f"speculate.arms.{arm}"
    return Keys(f"{where}.url", f"{where}.model", f"{where}.api_key_env", instead="")


def check_servers(arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """What each server that runs already says of itself, by arm. Raises as `UrlServer.__enter__` does."""
    found = {}
    for arm in arms:
        if arm.url is None or arm.name == CONTROL:
            continue
        with naming(arm.name, None), UrlServer(arm) as server:
            found[arm.name] = server.facts()
    return found


@contextmanager
def naming(arm: str, log: Path | None) -> Iterator[None]:
    """Errors of an engine say which arm's it was, and where its log is; a server that runs already has none here."""
    try:
        yield
    except EngineError as error:
        remedy = error.remedy
        if log is not None and str(log) not in remedy:
            remedy = f"{remedy} The whole log is in {log}.".strip()
        raise EngineError(f"speculate, arm {arm!r}: {error.message}", remedy=remedy) from error


def describe_url(arm: Arm, server: UrlServer) -> dict[str, Any]:
    """What arm.json says of an arm whose server runs already; keys as in `session.describe`."""
    return {
        "model": server.served_name,
        "engine": server.facts(),
        "start_seconds": None,
        "memory": {"missing": dict.fromkeys(_MEMORY, f"{NOT_OURS}: its memory cannot be seen from here")},
        "server": {
            "started_by_sqtool": False,
            "url": server.base_url,
            "model": server.served_name,
            "api_key_env": arm.engine.api_key_env,
        },
        "missing": dict(UNSEEN),
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, what a server says otherwise than before."""

    def flat(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {**facts, **{f"served.{name}": value for name, value in (facts.get("served") or {}).items()}}

    old, new = flat(before), flat(now)
    names = [name for name in sorted({*old, *new} - {"served"}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name}: {old.get(name)} then, {new.get(name)} now" for name in names)


def changed(arms: Mapping[str, Any], patience: float = _PROBE_SECONDS) -> tuple[str, list[str]]:
    """(which server is another one than when it was measured, "" for none; arms whose servers could not be asked), by
    the `arms` of speculate.json."""
    silent = []
    for name, arm in arms.items():
        server = arm.get("server") if isinstance(arm, Mapping) else None
        if not server or name == CONTROL:
            continue
        spec = EngineSpec(
            kind="openai", base_url=server["url"], model=server["model"], api_key_env=server.get("api_key_env")
        )
        try:
            now = look(spec, keys_of(name), patience=min(patience, PATIENCE))
        except (EngineError, UsageError):
            silent.append(name)
            continue
        if now != arm.get("engine"):
            return f"the server of arm {name} is another one ({difference(arm.get('engine') or {}, now)})", silent
    return "", silent
