"""Runs the arms in a process of its own and sends itself a signal at a moment: ROOT SPEC ENGINE MOMENT SIGNAL.

MOMENT is `starting` (the first server is waited for) or an arm's name (its first block is about to be sent).
"""

import os
import signal
import sys
from pathlib import Path

from evals.server import VllmServer
from evals.spec import EngineSpec
from sqtool.progress import SILENT
from sqtool.speculate import schedule
from sqtool.speculate.run import speculate
from sqtool.speculate.session import Session
from sqtool.speculate.spec import SpeculateSpec

root, moment, number = Path(sys.argv[1]), sys.argv[4], signal.Signals[sys.argv[5]]
turn, ready = Session.turn, VllmServer._wait_until_healthy


def turn_or_end(self, *args):
    if self.arm == moment:
        os.kill(os.getpid(), number)
    return turn(self, *args)


def ready_or_end(self, *args):
    if moment == "starting":
        os.kill(os.getpid(), number)
    return ready(self, *args)


Session.turn, VllmServer._wait_until_healthy = turn_or_end, ready_or_end
schedule.free_bytes = lambda env: 64 << 30
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    speculate(
        SpeculateSpec.model_validate_json(sys.argv[2]),
        EngineSpec.model_validate_json(sys.argv[3]),
        baseline=root / "target",
        candidate=root / "quantized",
        draft=root / "draft",
        root=root,
        out=root / "stage.tmp",
        progress=SILENT,
        seed=0,
    )
except KeyboardInterrupt:
    sys.exit(130)
