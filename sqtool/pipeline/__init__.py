"""The pipeline: from a recipe to stage folders, a verdict and a release; resumable, and safe against kill -9."""

from __future__ import annotations

from sqtool.pipeline.job import Job, find_model, job_of
from sqtool.pipeline.plan import Plan, Step, make_plan
from sqtool.pipeline.run import RunOutcome, run

__all__ = ["Job", "Plan", "RunOutcome", "Step", "find_model", "job_of", "make_plan", "run"]
