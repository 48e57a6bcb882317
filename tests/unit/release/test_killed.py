"""kill -9 at every step of a publication: nothing half-made is visible, and the next one succeeds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sqtool.errors import InfrastructureError
from sqtool.progress import SILENT
from sqtool.release import staging
from sqtool.release.manifest import verify_manifest

from .conftest import RECIPE, Case

# For each line `version recipe-as-json step` on standard input: fork, publish in the child, which kills itself at its
# step-th call that changes the disk, and print how it ended (negative: by that signal).
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import sqtool.gate.verdict
from sqtool.release import card, publish as module
from sqtool.release.spec import ReleaseSpec

def deadly(function):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

checkpoint, verdict, root = map(Path, sys.argv[1:])
for line in sys.stdin:
    version, recipe, left = json.loads(line)
    child = os.fork()
    if child == 0:
        for name in ("rename", "replace", "fsync", "mkdir", "symlink", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
        module.publish(
            ReleaseSpec(name="awq4", version=version), checkpoint=checkpoint, verdict=verdict, root=root,
            recipe_text=recipe, provenance={"seed": 0},
        )
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def assert_whole(case: Case) -> None:
    """Whatever a person sees below the releases is a whole release, or the pointer to one."""
    for home in case.releases.glob("[!.]*"):
        seen = [p for p in home.iterdir() if not p.name.startswith(".")]
        assert seen, f"{home} is visible and empty"
        for path in seen:
            if path.name == "latest":
                assert path.resolve().is_dir()
            else:
                assert verify_manifest(path) == []


@pytest.mark.parametrize("second", [False, True], ids=["first release", "second release"])
def test_killed_at_every_step(case: Case, second: bool) -> None:
    recipe, version = RECIPE, "v1"
    if second:
        case.publish()
        recipe, version = RECIPE + "seed: 1\n", "v2"
    words = [sys.executable, "-c", SCRIPT, str(case.checkpoint), str(case.verdict), str(case.root)]
    appeared = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step in range(1, 300):
            process.stdin.write(json.dumps([version, recipe, step]) + "\n")
            status = int(process.stdout.readline())
            assert_whole(case)
            appeared.append((case.releases / "awq4" / version).exists())
            if status == 0:
                break
            assert status == -signal.SIGKILL
        process.stdin.close()
    assert status == 0, "the publication never ended"
    # Most steps build out of sight; the kills after it appeared are at the end.
    assert 20 <= appeared.index(True) < len(appeared)
    assert case.latest() == version
    assert not case.hidden()


def test_killed_between_release_and_pointer_moves_the_pointer_later(case: Case) -> None:
    case.publish()
    case.recipe_text = RECIPE + "seed: 1\n"
    case.publish(spec={"version": "v2"})
    # As if the process had died before its last step.
    staging.point_latest(case.releases / "awq4", "awq4", "v1")
    assert case.publish(spec={"version": "v2"})["reused"]
    assert case.latest() == "v2"


def test_leftovers_of_other_names_stay(case: Case) -> None:
    case.releases.mkdir(parents=True)
    mine, other = case.releases / ".tmp~awq4~0", case.releases / ".tmp~awq4-b~0"
    mine.mkdir()
    other.mkdir()
    case.publish()
    assert not mine.exists()
    assert other.exists()


def test_two_publishers_wait_for_each_other(tmp_path: Path) -> None:
    with (
        staging.alone(tmp_path, "awq4", SILENT),
        pytest.raises(InfrastructureError, match="has been publishing"),
        staging.alone(tmp_path, "awq4", SILENT, wait=0.05),
    ):
        pass
    with staging.alone(tmp_path, "awq4", SILENT, wait=0.05), staging.alone(tmp_path, "gptq4", SILENT, wait=0.05):
        pass
