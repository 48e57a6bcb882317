"""Any server that speaks the OpenAI API and runs already, here or elsewhere."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.client import Endpoint, ask_all
from evals.engines.base import Done, Limits, Question
from evals.engines.http import by_echo
from evals.items import Item
from evals.spec import EngineSpec, GenerationSpec
from sqtool.errors import EngineError, UsageError, did_you_mean
from sqtool.files import sha256_text
from sqtool.progress import Progress

NO_KEY = "none"
"""What is sent where no key is needed; some servers want the header all the same."""
PATIENCE = 15.0
"""Seconds for the few requests that say what a server is."""


@dataclass(frozen=True)
class Keys:
    """How the recipe calls what a message is about."""

    url: str = "engine.base_url"
    model: str = "`engine.model` (or `candidate_model`)"
    api_key_env: str = "engine.api_key_env"
    instead: str = " `engine: {kind: vllm}` starts a server by itself."


ENGINE_KEYS = Keys()


class OpenAiEngine:
    """See `evals.engines.base.Engine`. The checkpoint's folder is what the user says that the server serves; its
    tokenizer puts the prompts of tasks that ask for log-likelihoods."""

    def __init__(self, spec: EngineSpec, *, model: Path, out: Path, root: Path, progress: Progress) -> None:
        self.spec, self.model = spec, model
        self.retried: Counter[str] = Counter()
        self.endpoint: Endpoint | None = None
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> OpenAiEngine:
        self._facts = look(self.spec)
        base_url, model = _place(self.spec)
        self.endpoint = Endpoint(base_url, key_of(self.spec), model, retried=self.retried)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.endpoint = None

    def ask(
        self, questions: Sequence[Question], generation: GenerationSpec, limits: Limits, *, seed: int, done: Done
    ) -> None:
        assert self.endpoint is not None
        asyncio.run(ask_all(self.endpoint, questions, generation, limits, seed=seed, done=done))

    def loglikelihoods(
        self,
        questions: Sequence[Question],
        continuations: Callable[[Item], Sequence[str]],
        limits: Limits,
        *,
        done: Done,
    ) -> None:
        from evals.engines.chat import load_tokenizer, prompt_ids, text_ids

        assert self.endpoint is not None
        tokenizer = load_tokenizer(self.model)

        def tokens_of(item: Item) -> tuple[list[int], list[list[int]]]:
            return prompt_ids(tokenizer, item), [text_ids(tokenizer, text) for text in continuations(item)]

        asyncio.run(by_echo(self.endpoint, questions, tokens_of, continuations, limits, done))

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    @staticmethod
    def check(spec: EngineSpec, root: Path) -> None:
        """`UsageError` without the key, `EngineError` when the server does not answer or does not have the model."""
        look(spec)

    @staticmethod
    def fingerprint(spec: EngineSpec, root: Path) -> dict[str, Any]:
        base_url, model = _place(spec)
        return {"endpoint": base_url, "model": model}


def _place(spec: EngineSpec) -> tuple[str, str]:
    assert spec.base_url is not None
    assert spec.model is not None
    return spec.base_url, spec.model


def key_of(spec: EngineSpec, keys: Keys = ENGINE_KEYS) -> str:
    """The key from the environment, or `NO_KEY`; `UsageError` where the variable is not set."""
    if spec.api_key_env is None:
        return NO_KEY
    value = os.environ.get(spec.api_key_env, "").strip()
    if not value:
        raise UsageError(
            f"{keys.api_key_env} names the environment variable {spec.api_key_env}, which is not set",
            remedy=f"export {spec.api_key_env}=...   (or leave api_key_env out where no key is needed)",
        )
    return value


def look(spec: EngineSpec, keys: Keys = ENGINE_KEYS, *, patience: float = PATIENCE) -> dict[str, Any]:
    """What the server says of itself; `EngineError` when it does not have the model. `patience` is in seconds."""
    base_url, model = _place(spec)
    key = key_of(spec, keys)
    named = _models(base_url, key, keys, patience)
    if model not in named:
        raise EngineError(
            f"{base_url} does not serve {model!r}; {did_you_mean(model, sorted(named)) if named else 'it lists none'}",
            remedy=f"{keys.model} is a name that the server's /v1/models lists.",
        )
    try:
        version = _get(f"{base_url}/version", key, keys, patience)
    except EngineError:
        version = {}  # the API has no such address; vLLM does
    served = {name: named[model][name] for name in ("owned_by", "root", "max_model_len") if name in named[model]}
    if str(served.get("root", "")).startswith("/"):
        # Where a server keeps its models is its owner's business; whether it is the same place is ours.
        root = str(served["root"])
        served["root"] = f"{Path(root).name} (path {sha256_text(root)[:12]})"
    return {
        "engine": "openai",
        "version": str(version.get("version", "unknown")) if isinstance(version, dict) else "unknown",
        "device_class": "unknown",
        "device": f"{model} at {base_url}",
        "dtype": "unknown",
        "kv_cache_dtype": "unknown",
        "served": served,
    }


def only_model(spec: EngineSpec, option: str) -> str:
    """The name of the one model that the server of `spec` has; `UsageError` naming `option` when there are others."""
    base_url, _ = _place(spec)
    names = sorted(_models(base_url, key_of(spec), ENGINE_KEYS, PATIENCE))
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise UsageError(f"{base_url} does not serve exactly one model but {listed}", remedy=f"Choose with {option}.")
    return names[0]


def _models(base_url: str, key: str, keys: Keys, patience: float) -> dict[str, dict[str, Any]]:
    """What the server lists, by name."""
    listing = _get(f"{base_url}/v1/models", key, keys, patience)
    entries = listing.get("data") if isinstance(listing, dict) else None
    return {str(entry.get("id")): entry for entry in entries or () if isinstance(entry, dict)}


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a redirect would carry the key to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        return None


def opener() -> urllib.request.OpenerDirector:
    """Opens addresses as they are: through no proxy, whatever the environment says, and after no redirect."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())


def _get(url: str, key: str, keys: Keys, patience: float) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with opener().open(request, timeout=patience) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        error.close()
        remedy = f"Check {keys.api_key_env}." if error.code in (401, 403) else f"Check {keys.url}."
        raise EngineError(f"{url} answers with status {error.code}", remedy=remedy) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise EngineError(
            f"no OpenAI-compatible server answers at {url}: {reason}",
            remedy=f"Start it, or correct {keys.url}.{keys.instead}",
        ) from None
