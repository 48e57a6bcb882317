"""A vLLM server that is started here for one checkpoint and ended afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.client import Endpoint, ask_all
from evals.engine_env import NO_GPU, device_name, installed, locate, resolve_env
from evals.engine_inputs import shaping, variables
from evals.engines.base import Done, Limits, Question
from evals.engines.http import by_prompt_logprobs
from evals.items import Item
from evals.server import VllmServer
from evals.spec import EngineSpec, GenerationSpec
from sqtool.errors import EngineError
from sqtool.progress import Progress

LOG = "vllm.log"


class VllmEngine:
    """See `evals.engines.base.Engine`. `out/vllm.log` is the server's log."""

    def __init__(self, spec: EngineSpec, *, model: Path, out: Path, root: Path, progress: Progress) -> None:
        self.server = VllmServer(model, spec, log=out / LOG, root=root, progress=progress)
        self.retried: Counter[str] = Counter()
        self.endpoint: Endpoint | None = None

    def __enter__(self) -> VllmEngine:
        server = self.server.__enter__()
        self.endpoint = vllm_endpoint(server, self.retried)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.endpoint = None
        self.server.__exit__(kind, error, trace)

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
        assert self.endpoint is not None
        asyncio.run(by_prompt_logprobs(self.endpoint, questions, continuations, limits, done))

    def facts(self) -> dict[str, Any]:
        return self.server.facts()

    @staticmethod
    def check(spec: EngineSpec, root: Path) -> None:
        """`EngineError` when there is no vLLM environment, or none for the device that is asked for."""
        env = locate(resolve_env(spec, root))
        if spec.device == env.device == "cuda" and device_name("cuda") in ("", NO_GPU):
            raise EngineError(
                "engine.device is cuda, and no NVIDIA GPU is seen here", remedy="Measure on a machine that has one."
            )
        if spec.device not in ("auto", env.device):
            raise EngineError(
                f"engine.device is {spec.device}, and {env.folder} holds vLLM {env.version}, which is for {env.device}",
                remedy="Measure on a machine with that device, or name an environment for it in `engine.env`."
                if spec.device == "cuda"
                else "Name an environment with vLLM for CPUs in `engine.env`.",
            )

    @staticmethod
    def fingerprint(spec: EngineSpec, root: Path) -> dict[str, Any]:
        try:
            env = locate(resolve_env(spec, root))
        except EngineError:
            return {"vllm": "absent"}
        return {
            "vllm": env.version,
            "torch": installed(env, "torch"),
            "device": device_name(env.device),
            **shaping(variables(spec)),
        }


def vllm_endpoint(server: VllmServer, retried: Counter[str] | None = None) -> Endpoint:
    """How a running server is asked."""
    return Endpoint(
        server.base_url,
        server.api_key,
        server.served_name,
        server.require_alive,
        vllm=True,
        retried=Counter() if retried is None else retried,
    )
