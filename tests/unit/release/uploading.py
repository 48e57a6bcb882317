"""A program that publishes the case in a folder to a URL, for clients that read the environment once, at import.

    python -m tests.unit.release.uploading ROOT TO [SPEC as JSON]

It prints publish()'s result as JSON, or the error as the command line does, and exits with its code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[3]
NO_SETTINGS = ("HF_", "AWS_", "HUGGING", "XDG_", "SQTOOL_")
"""Beginnings of variables that the clients read, and that a developer may have set."""


def uploaded(root: Path, to: str, env: Mapping[str, str], **spec: Any) -> subprocess.CompletedProcess[str]:
    """Publish the case in `root` in a process of its own."""
    return finished(start(root, to, env, **spec))


def start(root: Path, to: str, env: Mapping[str, str], **spec: Any) -> subprocess.Popen[str]:
    """The same, without waiting."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(NO_SETTINGS)}
    clean |= {"HOME": str(root), "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", __name__, str(root), to, json.dumps(spec)]
    return subprocess.Popen(
        command, env={**clean, **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Its exit code and output."""
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def main(root: Path, to: str, spec: dict[str, Any]) -> int:
    """See above."""
    from sqtool.errors import SqtoolError

    from .conftest import Case

    records = root / "baseline", root / "candidate", None
    case = Case(root, root / "runs" / "awq4" / "checkpoint", root / "verdict.json", records)
    text = root / "recipe.yaml"
    if text.is_file():
        case.recipe_text = text.read_text()
    try:
        print(json.dumps(case.publish(spec={"to": to, **spec}, records=records)))
    except SqtoolError as error:
        print(f"{error.message}\n{error.remedy}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
