"""Help answers at once: no command's help imports anything heavy."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sqtool.cli import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "llmcompressor", "datasets", "vllm", "scipy", "matplotlib", "httpx", "numpy")
NOT_FOR_HELP = (*HEAVY, "pydantic", "ruamel", "rich", "jinja2", "jsonschema")
CHECK = """
import sys
from sqtool.cli import call
code = call({args!r})
loaded = [m for m in {names!r} if m in sys.modules]
sys.exit(f"{{code}} {{loaded}}" if code or loaded else 0)
"""


def python(code: str, *, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    done = python(CHECK.format(args=args, names=NOT_FOR_HELP))
    assert done.returncode == 0, done.stderr
    if args[0] in COMMANDS:
        assert "Examples:" in done.stdout


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    done = python(
        "import sys\nfrom pathlib import Path\nfrom sqtool.recipe import load_recipe\n"
        f"load_recipe(Path('recipes/awq4.yaml'))\nsys.exit(str([m for m in {HEAVY!r} if m in sys.modules] or '') or 0)"
    )
    assert done.returncode == 0, done.stderr


def test_help_takes_under_300_ms_of_processor_time() -> None:
    """Processor time, so that a busy machine does not fail it; the best of five, as for any timing."""
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "sqtool", "--help"], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3, spent
