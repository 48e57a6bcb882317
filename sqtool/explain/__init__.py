"""Why a verdict is what it is: which items, parts of the items and layers to look at, and what to try.

`worse` finds what changed in the records, `advice` says what follows, `run` reads a run folder and puts it together.
Beside the gate and not in it: what is written here explains a verdict and is no part of one, so a better sentence must
not make a finished gate run again.
"""

from __future__ import annotations

from sqtool.explain.run import Explanation, explain_run

__all__ = ["Explanation", "explain_run"]
