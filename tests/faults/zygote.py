"""A process that has imported everything and forks one `sqtool` after the other: real processes, without the start.

Importing costs more than all the rest of a small run. The harness sends words, environment and folder as JSON over the
socket that is this process's standard input, with three descriptors: standard output, standard error, and one on which
a line with the process id comes back, and a line with the exit code (negative: the signal) when it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PRELOADED = (
    "sqtool.cli.quantize sqtool.cli.runs sqtool.cli.bars sqtool.recipe sqtool.pipeline sqtool.report sqtool.gate.plan "
    "sqtool.gate.judge sqtool.release.publish sqtool.speculate.run evals.run evals.control evals.engine_check "
    "evals.config_diff evals.flips evals.drift quantize.run quantize.plan scipy.stats httpx prometheus_client.parser "
    "filelock rich.table psutil torch safetensors.torch tokenizers jsonschema msgspec matplotlib.pyplot jinja2 "
    "ruamel.yaml sqtool.stages.calibrate sqtool.stages.quantize sqtool.stages.baseline sqtool.stages.control "
    "sqtool.stages.evaluate "
    "sqtool.stages.gate sqtool.stages.speculate sqtool.stages.release evals.engines.vllm sqtool.release.card"
).split()


def serve() -> None:
    """Fork what is asked for until the socket ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    with socket.socket(fileno=0) as asked:
        asked.sendall(b"ready\n")
        while True:
            data, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 3)
            if not data:
                return
            if os.fork() == 0:
                asked.close()
                _supervise(json.loads(data), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _supervise(wanted: dict[str, Any], out: int, err: int, reply: int) -> None:
    """The parent of one run: says how it ended, however it did."""
    child = os.fork()
    if child == 0:
        os.close(reply)
        _become(wanted, out, err)
    os.close(out)
    os.close(err)
    os.write(reply, f"{child}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.write(reply, f"{status}\n".encode())
    finally:
        os._exit(0)


def _become(wanted: dict[str, Any], out: int, err: int) -> None:
    """Be `sqtool` with these words."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whether or not the harness runs under nohup
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, at in ((null, 0), (out, 1), (err, 2)):
        os.dup2(descriptor, at)
    for descriptor in {null, out, err} - {0, 1, 2}:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    sys.argv = ["sqtool", *wanted["words"]]
    code: Any = 1
    try:
        if wanted["plan"] is not None:
            from tests.faults.inject import apply

            apply(wanted["plan"])
        from sqtool.cli import main

        main(wanted["words"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            code = 120  # what Python itself exits with then
        os._exit(code)


class Zygote:
    """The harness's side."""

    def __init__(self, checkout: Path) -> None:
        self._mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=theirs,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "MPLBACKEND": "Agg", **threads},
            start_new_session=True,
        )
        theirs.close()
        assert self._mine.recv(16) == b"ready\n"

    def start(
        self, words: list[str], plan: dict[str, Any] | None, env: dict[str, str], cwd: Path, out: int, err: int
    ) -> Forked:
        """One `sqtool`."""
        mine, theirs = socket.socketpair()
        wanted = {"words": words, "plan": plan, "env": env, "cwd": str(cwd)}
        socket.send_fds(self._mine, [json.dumps(wanted).encode()], [out, err, theirs.fileno()])
        theirs.close()
        return Forked(mine)

    def close(self) -> None:
        """End it; what it forked is somebody else's."""
        self._mine.close()
        self.process.wait(20)


class Forked:
    """A forked run: as much of `subprocess.Popen` as the harness needs."""

    def __init__(self, reply: socket.socket) -> None:
        self._reply = reply
        self._text = b""
        self._fill(1, 60)
        self.pid = int(self._text.split(b"\n")[0])

    def _fill(self, lines: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._text.count(b"\n") < lines:
            self._reply.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._reply.recv(64)
            except TimeoutError:
                return False
            assert data, "the parent of the run died"
            self._text += data
        return True

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return int(self._text.split(b"\n")[1]) if self._fill(2, 0) else None

    def wait(self, seconds: float | None = None) -> int:
        """The exit code; TimeoutExpired when it still runs."""
        if not self._fill(2, 3600 if seconds is None else seconds):
            raise subprocess.TimeoutExpired("sqtool", seconds or 0)
        code = self.poll()
        assert code is not None
        return code

    def close(self) -> None:
        """Forget it."""
        self._reply.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    serve()
