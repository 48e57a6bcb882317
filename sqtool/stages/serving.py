"""A candidate that this machine's engine can serve: the checkpoint itself, or the same weights unpacked to 16 bits.

vLLM's CPU build has no kernel for some packed formats (see `evals.engine_env.unsupported`). The quality of such a
checkpoint can be measured all the same, on 16-bit weights that hold exactly the quantized values; its speed and its
memory cannot, and the result says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqtool.errors import UsageError
from sqtool.stages.contract import Inputs
from sqtool.stages.sections import engine_section

UNPACKED = "unpacked to 16 bits"


@dataclass(frozen=True)
class Served:
    """What is given to the engine. `why` is empty when it is the checkpoint itself."""

    folder: Path
    why: str = ""

    @property
    def summary(self) -> dict[str, Any]:
        """For `result.json` and the verdict's bindings."""
        return {"as": UNPACKED, "why": self.why} if self.why else {"as": "the checkpoint"}


@contextmanager
def servable(inputs: Inputs, out: Path) -> Iterator[Served]:
    """The candidate as it can be served; an unpacked copy lies in `out` and is removed at the end.

    A format that cannot be unpacked (quantized activations) is given as it is: the engine then says what it lacks.
    """
    from evals.engine_env import locate, resolve_env, unsupported

    candidate = inputs.candidate
    assert candidate is not None
    reason = unsupported(candidate, locate(resolve_env(engine_section(inputs), inputs.root)))
    if reason is None:
        yield Served(candidate)
        return
    from quantize.fake import unpack

    # The folder's name is what reports call the model.
    place = out / "unpacked" / candidate.name
    try:
        try:
            with inputs.progress.task(f"candidate: {UNPACKED}"):
                unpack(candidate, place)
        except UsageError:
            yield Served(candidate)
            return
        inputs.progress.note(f"{reason}; the candidate is measured with its weights {UNPACKED}")
        yield Served(place, reason)
    finally:
        shutil.rmtree(out / "unpacked", ignore_errors=True)
