"""A real `vllm serve` process with a beginning and an end.

    with VllmServer(model, engine_spec, log=out / "vllm.log") as server:
        ... requests to server.base_url with server.api_key for the model server.served_name ...

The process runs in vLLM's own environment under a guard (guard.py) that kills the whole tree when this process ends,
however it ends.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from evals.engine_env import (
    VllmEnv,
    device_name,
    locate,
    resolve_env,
    server_arguments,
    server_environment,
    unsupported,
)
from evals.engine_inputs import variables
from evals.engine_log import diagnose, facts, phase, telling_lines
from evals.spec import EngineSpec
from sqtool.errors import EngineError
from sqtool.progress import SILENT, Progress, Task

GRACE_SECONDS = 15.0
"""How long vLLM may take to end after SIGTERM (seen: 0.4 s); it removes its shared memory in that time."""
POLL_SECONDS = 0.2
PORT_ATTEMPTS = 3
_GUARD = Path(__file__).with_name("guard.py")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class VllmServer:
    """Context manager around one `vllm serve` on 127.0.0.1, a free port and a random API key.

    `log` gets everything the server prints; an older file of that name is replaced. `extra_args` follow the spec's
    own (for `--speculative-config` and the like). `python_env` is the environment's folder; by default `spec.env`,
    looked for below `root`, the working folder and this checkout.

    `__enter__` returns when /health answers and the model is served; otherwise it raises `EngineError` with the
    telling lines of the log and a remedy. `__exit__` ends the whole process tree and waits for it.
    """

    served_name = "model"

    def __init__(
        self,
        model: Path,
        spec: EngineSpec,
        *,
        log: Path,
        extra_args: Sequence[str] = (),
        python_env: Path | None = None,
        root: Path | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.model = Path(model)
        self.spec = spec
        self.log = Path(log)
        self.extra_args = tuple(extra_args)
        self.api_key = secrets.token_urlsafe(24)
        self.base_url = ""
        self.start_seconds = 0.0
        """Seconds from the start of the process to the first healthy answer."""
        self.weights = "as stored"
        """`as stored`, or why and how the checkpoint's weights are served in another form."""
        self._unpacked: Path | None = None
        self._env_folder = Path(python_env) if python_env is not None else resolve_env(spec, root)
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: list[str] = []
        self._facts: dict[str, Any] | None = None
        # Local addresses never go through a proxy, whatever the environment says.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> VllmServer:
        env = locate(self._env_folder)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        served = self._servable(env)
        label = f"vLLM: start ({self.model.name})"
        with self._progress.task(label) as task:
            for attempt in range(1, PORT_ATTEMPTS + 1):
                port = _free_port()
                self.base_url = f"http://127.0.0.1:{port}"
                self._arguments = server_arguments(
                    served.resolve(), self.spec, env, port, self.served_name, self.extra_args
                )
                command = [str(env.vllm), "serve", *self._arguments]
                try:
                    self._start(command, server_environment(env, self.spec, self.api_key))
                    self._wait_until_healthy(task, label)
                    return self
                except BaseException as error:
                    self._end()
                    known = diagnose(self.log_text()) if isinstance(error, EngineError) else None
                    if known is None or not known.retry or attempt == PORT_ATTEMPTS:
                        self.stop()
                        raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _servable(self, env: VllmEnv) -> Path:
        """The folder to serve: the model's own, or its weights unpacked where this device has no kernel for them."""
        problem = unsupported(self.model, env)
        if problem is None:
            return self.model
        if not problem.unpackable or self.spec.unpack == "never":
            raise EngineError(
                f"{self.model} cannot be served here: {problem.reason}",
                remedy="`engine: {unpack: auto}` serves the same weights in 16 bits; or use a machine with the kernel."
                if problem.unpackable
                else "Evaluate on a machine that has the kernel.",
            )
        from evals.unpacked import unpack

        self._unpacked = self.log.with_name(f"{self.log.stem}-unpacked")
        self.weights = f"unpacked to 16 bits: {problem.reason}"
        self._progress.note(f"vLLM: {self.model.name} is served {self.weights}")
        with self._progress.task(f"vLLM: unpack ({self.model.name})"):
            unpack(self.model, self._unpacked)
        return self._unpacked

    def stop(self) -> None:
        """End the server and everything it started, and wait for that. Does nothing when it is not running."""
        self._end()
        if self._unpacked is not None:
            shutil.rmtree(self._unpacked, ignore_errors=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            # The guard always ends: after the grace it kills. The margin is for a machine under load.
            process.wait(GRACE_SECONDS + 30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """The process above all of the server's processes; None when it does not run."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Whether the server process runs (it may still hang: ask `healthy`)."""
        return self._process is not None and self._process.poll() is None

    def healthy(self, timeout: float = 5.0) -> bool:
        """Whether /health answers 200 within `timeout` seconds."""
        return self._get("/health", timeout) is not None

    def require_alive(self) -> None:
        """`EngineError` with the log's telling lines when the server process has ended."""
        if not self.alive():
            raise self.failure("the vLLM server died")

    def failure(self, what: str) -> EngineError:
        """An `EngineError` that says `what`, with the log's telling lines and the remedy of a known cause."""
        text = self.log_text()
        known = diagnose(text)
        lines = telling_lines(text)
        message = what + (f": {known.cause}" if known else "")
        if lines:
            message += "\n" + "\n".join(f"    {line}" for line in lines)
        remedy = (known.remedy + " " if known else "") + f"The whole log is in {self.log}."
        return EngineError(message, remedy=remedy)

    def facts(self) -> dict[str, Any]:
        """What a verdict binds to: engine, version, device, kernels, types, flags (JSON-able; no port, no key)."""
        if self._facts is None:
            env = locate(self._env_folder)
            answered = str((self._get("/version", 5.0) or {}).get("version", ""))
            flags = list(self._arguments[1:])
            at = flags.index("--port")
            del flags[at : at + 2]
            self._facts = {
                "engine": "vllm",
                # The distribution's version says more ("0.32.0+cpu") than the server's answer ("0.32.0").
                "version": env.version if env.version.startswith(answered) else answered,
                "device_class": env.device,
                "device": device_name(env.device),
                "weights": self.weights,
                "tensor_parallel_size": self.spec.tensor_parallel_size,
                "flags": flags,
                "environment": variables(self.spec),
                **facts(self.log),
            }
        return {**self._facts, "start_seconds": round(self.start_seconds, 1)}

    def log_text(self) -> str:
        """The log so far (its last 2 MB)."""
        try:
            with self.log.open("rb") as handle:
                handle.seek(max(0, self.log.stat().st_size - 2_000_000))
                return handle.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def _start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        with self.log.open("wb") as handle:
            # -I -S: the guard needs the standard library only and must not run anybody's sitecustomize.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(GRACE_SECONDS), *command],
                stdin=subprocess.PIPE,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _wait_until_healthy(self, task: Task, label: str) -> None:
        start = time.monotonic()
        said = ""
        pause = threading.Event()
        while True:
            if not self.alive():
                raise self.failure(f"the vLLM server for {self.model} did not start")
            if self.healthy(timeout=2.0) and self._serves_our_model():
                self.start_seconds = time.monotonic() - start
                return
            waited = time.monotonic() - start
            if waited > self.spec.startup_timeout:
                raise self.failure(
                    f"the vLLM server for {self.model} was not ready after {waited:.0f} s (engine.startup_timeout); "
                    f"it was last seen {phase(self.log_text())}"
                )
            now = phase(self.log_text())
            if now != said:
                said = now
                task.describe(f"{label}: {now}")
            pause.wait(POLL_SECONDS)

    def _serves_our_model(self) -> bool:
        """Another process may have taken the port between choosing and binding: only ours knows the key."""
        listing = self._get("/v1/models", 5.0)
        return listing is not None and any(entry.get("id") == self.served_name for entry in listing.get("data", []))

    def _get(self, path: str, timeout: float) -> dict[str, Any] | None:
        request = urllib.request.Request(self.base_url + path, headers={"Authorization": f"Bearer {self.api_key}"})
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                body = answer.read()
        except (urllib.error.URLError, OSError, ValueError):
            return None
        try:
            value = json.loads(body) if body else {}
        except ValueError:
            return None
        return value if isinstance(value, dict) else {}
