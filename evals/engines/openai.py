"""Any server that speaks the OpenAI API and runs already, here or elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.client import Endpoint, ask_all
from evals.engines.base import Done, Limits, Question
from evals.engines.http import by_echo
from evals.items import Item
from evals.spec import EngineSpec, GenerationSpec
from sqtool.errors import EngineError, UsageError, did_you_mean
from sqtool.progress import Progress

NO_KEY = "none"
"""What is sent where no key is needed; some servers want the header all the same."""
PATIENCE = 15.0
"""Seconds for the few requests that say what a server is."""


class OpenAiEngine:
    """See `evals.engines.base.Engine`. The checkpoint's folder is what the user says that the server serves; its
    tokenizer puts the prompts of tasks that ask for log-likelihoods."""

    def __init__(self, spec: EngineSpec, *, model: Path, out: Path, root: Path, progress: Progress) -> None:
        self.spec, self.model = spec, model
        self.retried: Counter[str] = Counter()
        self.endpoint: Endpoint | None = None
        self._facts: dict[str, Any] = {}

    def __enter__(self) -> OpenAiEngine:
        self._facts = _look(self.spec)
        base_url, model = _place(self.spec)
        self.endpoint = Endpoint(base_url, _key(self.spec), model, retried=self.retried)
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
        _look(spec)

    @staticmethod
    def fingerprint(spec: EngineSpec, root: Path) -> dict[str, Any]:
        base_url, model = _place(spec)
        return {"endpoint": base_url, "model": model}


def _place(spec: EngineSpec) -> tuple[str, str]:
    assert spec.base_url is not None
    assert spec.model is not None
    return spec.base_url, spec.model


def _key(spec: EngineSpec) -> str:
    if spec.api_key_env is None:
        return NO_KEY
    value = os.environ.get(spec.api_key_env, "").strip()
    if not value:
        raise UsageError(
            f"engine.api_key_env names the environment variable {spec.api_key_env}, which is not set",
            remedy=f"export {spec.api_key_env}=...   (or leave api_key_env out where no key is needed)",
        )
    return value


def _look(spec: EngineSpec) -> dict[str, Any]:
    """What the server says of itself; `EngineError` when it does not have the model."""
    base_url, model = _place(spec)
    key = _key(spec)
    named = _models(base_url, key)
    if model not in named:
        raise EngineError(
            f"{base_url} does not serve {model!r}; {did_you_mean(model, sorted(named)) if named else 'it lists none'}",
            remedy="`engine.model` (or `candidate_model`) is a name that the server's /v1/models lists.",
        )
    try:
        version = _get(f"{base_url}/version", key)
    except EngineError:
        version = {}  # the API has no such address; vLLM does
    served = {name: named[model][name] for name in ("owned_by", "root", "max_model_len") if name in named[model]}
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
    names = sorted(_models(base_url, _key(spec)))
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise UsageError(f"{base_url} does not serve exactly one model but {listed}", remedy=f"Choose with {option}.")
    return names[0]


def _models(base_url: str, key: str) -> dict[str, dict[str, Any]]:
    """What the server lists, by name."""
    listing = _get(f"{base_url}/v1/models", key)
    entries = listing.get("data") if isinstance(listing, dict) else None
    return {str(entry.get("id")): entry for entry in entries or () if isinstance(entry, dict)}


def _get(url: str, key: str) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        remedy = "Check engine.api_key_env." if error.code in (401, 403) else "Check engine.base_url."
        raise EngineError(f"{url} answers with status {error.code}", remedy=remedy) from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise EngineError(
            f"no OpenAI-compatible server answers at {url}: {reason}",
            remedy="Start it, or correct engine.base_url. `engine: {kind: vllm}` starts a server by itself.",
        ) from None
