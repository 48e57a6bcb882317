#!/usr/bin/env bash
# A step of action.yml: everything that a job shows of the run in FOLDER, with files in $RUNNER_TEMP/sqtool for the
# artifact and the comment. EXIT_CODE is the run's; without FOLDER there was no run to report.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
out=$RUNNER_TEMP/sqtool
rm -rf "$out"
mkdir -p "$out"

if [ -z "${FOLDER:-}" ]; then
  printf '::error title=sqtool::exit code %s before there was a run; the log of the step before says why\n' "$EXIT_CODE"
  printf '## sqtool: no run\n\nExit code %s before there was a run; the log says why.\n' "$EXIT_CODE" >>"$GITHUB_STEP_SUMMARY"
  printf 'outcome=failed\nexit_code=%s\n' "$EXIT_CODE" >>"$GITHUB_OUTPUT"
  exit 0
fi

sqtool=("$root/.venv/bin/sqtool" report --root .)
"${sqtool[@]}" --format github -- "$FOLDER"
"${sqtool[@]}" --format junit --output "$out/junit.xml" -- "$FOLDER"
"${sqtool[@]}" --format comment --output "$out/comment.md" -- "$FOLDER"
"${sqtool[@]}" --format md --output "$out/report.md" -- "$FOLDER"
for plot in "$FOLDER"/coverage-*.svg; do
  if [ -f "$plot" ]; then cp "$plot" "$out/"; fi
done
for file in run.json run.log recipe.yaml recipe.json gate/verdict.json; do
  if [ -f "$FOLDER/$file" ]; then cp "$FOLDER/$file" "$out/"; fi
done
