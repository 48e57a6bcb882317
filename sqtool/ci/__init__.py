"""What continuous integration shows of a run: JUnit XML, a comment for a pull request, GitHub's own channels.

Pure: a run folder in, texts out. The exit code of a job stays that of `sqtool quantize`; nothing here decides.
"""

from __future__ import annotations

from sqtool.ci.comment import comment, marker
from sqtool.ci.junit import junit
from sqtool.ci.run import CiRun, read_run

__all__ = ["CiRun", "comment", "junit", "marker", "read_run"]
