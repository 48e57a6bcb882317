#!/usr/bin/env bash
# A step of action.yml. Outputs: the folders of the two environments, and a key that changes with what they are made
# from. hashFiles() cannot make that key: it sees the workspace only, and an action lies outside of it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd "$root"
# An environment belongs to its folder and its interpreter; scripts/setup would make it anew for another one.
digest=$({
  printf '%s\n' "$root"
  "${PYTHON:-python3}" -c 'import platform, sys; print(platform.machine(), sys.version, sys.executable)'
  cat pyproject.toml constraints/*.txt scripts/setup
} | sha256sum)
{
  printf 'sqtool=%s\n' "$root/.venv"
  printf 'vllm=%s\n' "$root/.venv-vllm"
  printf 'key=%s\n' "sqtool-environments-${digest:0:24}"
} >>"$GITHUB_OUTPUT"
