"""What stopping early will cost and save, for the plan: expected items by what is true, and the power it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sqtool.gate.expected import expected
from sqtool.gate.spec import GateSpec

DISCORDANCE = 0.03
"""The middle one of those that the plan assumes."""
DROPS = (0.0, 1.0, 2.0, 5.0, 10.0)
"""True drops, in margins."""


@dataclass(frozen=True)
class StopRow:
    """One metric, were `drop` true: items asked on average, and the chances of PASS and REGRESSED with this way to
    stop and without any."""

    metric: str
    items: int
    drop: float
    expected_items: float
    passes: float
    passes_if_off: float
    regressed: float
    regressed_if_off: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def stop_rows(spec: GateSpec, metrics: Iterable[tuple[str, int, float]]) -> tuple[StopRow, ...]:
    """Rows for (metric, items, absolute margin); none when nothing stops early. Simulated, the same every time."""
    if spec.early_stop == "off":
        return ()
    rows = []
    family = len(spec.gated)
    for name, items, margin in metrics:
        alpha = spec.metrics[name].alpha or spec.alpha
        for margins in DROPS:
            drop = margins * margin
            if drop + DISCORDANCE > 1:
                continue
            ours = expected(margin, items, spec.early_stop, DISCORDANCE, drop, alpha, family=family)
            off = expected(margin, items, "off", DISCORDANCE, drop, alpha, family=family)
            rows.append(
                StopRow(
                    name,
                    items,
                    drop,
                    ours.items,
                    ours.chance["PASS"],
                    off.chance["PASS"],
                    ours.chance["REGRESSED"],
                    off.chance["REGRESSED"],
                )
            )
    return tuple(rows)
