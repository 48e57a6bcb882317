#!/usr/bin/env bash
# Let sqtool use a vLLM that lies in no virtual environment of its own: on PYTHONPATH, or in the interpreter itself.
#
#   bash benchmarks/gpu/environment.sh [PYTHON]      writes .venv-vllm, the folder that `engine.env` names by default
#
# What is written: bin/vllm and bin/python, which start PYTHON with the folder of that vLLM on its path, and links to
# the package and its metadata where sqtool looks for them. An environment that `make vllm` made is left alone.
set -euo pipefail
python=$(command -v "${1:-python3}")
folder="$(cd "$(dirname "$0")/../.." && pwd)/.venv-vllm"
if [ -e "$folder/pyvenv.cfg" ]; then
  echo "$folder is a virtual environment already: nothing to do"
  exit 0
fi
"$python" - "$folder" "$python" <<'PY'
import importlib.metadata
import shlex
import sys
from pathlib import Path

folder, python = Path(sys.argv[1]), sys.argv[2]
try:
    found = importlib.metadata.distribution("vllm")
except importlib.metadata.PackageNotFoundError:
    raise SystemExit(f"{python} finds no vllm: install it there, or name its folder in PYTHONPATH") from None
site = Path(str(found.locate_file(""))).resolve()
packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
packages.mkdir(parents=True, exist_ok=True)
(folder / "bin").mkdir(exist_ok=True)
for name in ("vllm", f"vllm-{found.version}.dist-info"):
    link = packages / name
    link.unlink(missing_ok=True)
    link.symlink_to(site / name)
start = f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(site))}${{PYTHONPATH:+:$PYTHONPATH}}\nexport PYTHONPATH\nexec {shlex.quote(python)}"
for name, words in (("python", ""), ("vllm", " -m vllm.entrypoints.cli.main")):
    script = folder / "bin" / name
    script.write_text(f'{start}{words} "$@"\n')
    script.chmod(0o755)
print(f"{folder}: vLLM {found.version} of {site}, started by {python}")
PY
