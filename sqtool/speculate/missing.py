"""What could not be measured, with the reason: the other half of every report."""

from __future__ import annotations

from typing import Any


class Missing:
    """Collects {measure, arm, load, reason}; arm and load are None when the reason holds for all of them."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, measure: str, reason: str, *, arm: str | None = None, load: str | None = None) -> dict[str, str]:
        """Note it once; returns what stands in the measure's own place."""
        entry = {"measure": measure, "arm": arm, "load": load, "reason": reason}
        if entry not in self.entries:
            self.entries.append(entry)
        return {"missing": reason}
