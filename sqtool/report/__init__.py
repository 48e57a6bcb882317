"""The report of a run: facts read from its folder, drawn as Markdown."""

from __future__ import annotations

from sqtool.report.facts import Facts, Table, collect
from sqtool.report.markdown import render, write_report

__all__ = ["Facts", "Table", "collect", "render", "write_report"]
