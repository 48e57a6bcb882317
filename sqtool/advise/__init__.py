"""What to deploy: baseline, quantized, speculation or both, for the traffic and the loads that were measured.

`measured` reads speculate.json, `rules` are the field's rules of thumb with the figures that they looked at,
`complexity` says what an arm costs to operate, `choose` puts it together. Beside `sqtool.speculate` and not in it: a
better sentence must not make the arms be measured again.
"""

from __future__ import annotations

from sqtool.advise.choose import Advice, ArmAdvice, LoadAdvice, advise
from sqtool.advise.measured import Measured

__all__ = ["Advice", "ArmAdvice", "LoadAdvice", "Measured", "advise"]
