"""A stale baseline, put where the pipeline would look for the true one: does the pipeline take it?

Statistics cannot know whose records they compare. The pipeline binds them: a finished baseline carries the digest of
the model's content, of the items, the engine and the code. Here the finished baseline of one model is laid into the
folder that belongs to another's, as a copy by hand or a model changed in place would leave it, and the pipeline's own
planner is asked what it would do.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.gate.damage.population import ROOT
from sqtool.files import write_json
from sqtool.pipeline.job import job_of
from sqtool.pipeline.plan import Step, make_plan
from sqtool.recipe.load import load_recipe
from sqtool.runfolder import RESULT


def baseline_step(root: Path, model: Path) -> Step:
    """What the pipeline would do about the baseline of `model`, with its cache below `root`."""
    job = replace(job_of(load_recipe(ROOT / "recipes/awq4.yaml")), root=root, model=model)
    return make_plan(job, until="baseline").steps[-1]


def caught(model: Path, other: Path) -> str:
    """Why the pipeline does not use `other`'s finished baseline for `model`; empty when it would."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "artifacts").mkdir()
        (root / "artifacts/reference").symlink_to(ROOT / "artifacts/reference")
        mine, theirs = baseline_step(root, model), baseline_step(root, other)
        mine.folder.mkdir(parents=True)
        stale = {"stage": "baseline", "digest": theirs.digest, "parts": dict(theirs.parts), "summary": {}}
        write_json(mine.folder / RESULT, stale)
        step = baseline_step(root, model)
        return "" if step.action == "cached" else step.why
