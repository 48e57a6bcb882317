#!/usr/bin/env bash
# A step of action.yml: run RECIPE in the working folder. Its exit code becomes an output instead of this step's own,
# so that the report is made whatever the verdict; the action's last step ends with it.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
result=$RUNNER_TEMP/sqtool-run.json
# Logs quote files and servers. Until the token is said again, the runner takes no line of them for a command.
token=$("$root/.venv/bin/python" -c 'import secrets; print(secrets.token_hex(16))') || exit 4
printf '::stop-commands::%s\n' "$token"
# shellcheck disable=SC2069  # stderr is progress and goes to the log, in order; stdout is the result alone
"$root/.venv/bin/sqtool" quantize --json --root . -- "$RECIPE" 2>&1 >"$result"
code=$?
# Where the run is. There is none when the recipe could not be read.
read_folder='
import json, pathlib, sys
try:
    run = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(pathlib.Path(run["root"]) / run["folder"])
except (OSError, ValueError, KeyError, TypeError):
    pass
'
folder=$("$root/.venv/bin/python" -c "$read_folder" "$result")
if [ -n "$folder" ]; then "$root/.venv/bin/sqtool" report --root . -- "$folder"; fi
printf '\n::%s::\n' "$token"
{
  printf 'exit-code=%s\n' "$code"
  printf 'folder=%s\n' "${folder//$'\n'/ }"
} >>"$GITHUB_OUTPUT"
