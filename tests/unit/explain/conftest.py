"""Run folders of every end, and writing records; both are made where other tests need them too."""

from __future__ import annotations

from tests.unit.ci.conftest import ended
from tests.unit.gate.conftest import write_records
from tests.unit.report.conftest import make_run

__all__ = ["ended", "make_run", "write_records"]
