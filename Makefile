# Every target sets up what it needs; nothing is done twice. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup vllm quantize test unit e2e slow check audit format lock clean distclean

# `make quantize RECIPE=recipes/gptq4.yaml`; PYTHON=/path/to/python3.12 names the interpreter for new environments.
RECIPE ?= recipes/awq4.yaml
# `make check AUDIT=--advisory` prints known defects of dependencies and does not fail because of them.
AUDIT ?=
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST = .venv/bin/python -m pytest

help:  ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup:  ## make .venv: sqtool, llm-compressor, development tools
	@scripts/setup sqtool

vllm:  ## make .venv-vllm: vLLM, the engine that everything is measured with
	@scripts/setup vllm

quantize: setup vllm  ## quantize, measure, gate and release RECIPE (default recipes/awq4.yaml)
	@.venv/bin/sqtool quantize $(RECIPE)

test: unit e2e  ## what every change has to pass, real llm-compressor and vLLM included

unit: setup  ## the tests that start no server
	@$(PYTEST) -q -n $(WORKERS) --dist loadfile -m "not e2e"

e2e: setup vllm  ## the tests that drive real llm-compressor and real vLLM
	@SQTOOL_REQUIRE_E2E=1 $(PYTEST) -q -m "e2e and not slow"

slow: setup vllm  ## the rest of those: kills of real servers, the comparison with `vllm bench serve` (ten minutes)
	@SQTOOL_REQUIRE_E2E=1 $(PYTEST) -q -m "e2e and slow"

check: setup  ## ruff, mypy strict, import-linter, audit if it can be: all of them, then fail if any did
	@status=0; for tool in "ruff check ." "ruff format --check ." mypy lint-imports "python scripts/audit.py --if-possible $(AUDIT)"; do \
	  echo ".venv/bin/$$tool"; .venv/bin/$$tool || status=1; done; exit $$status

audit: setup  ## look up known defects of all pinned dependencies; fails where that cannot be done
	@.venv/bin/python scripts/audit.py

format: setup  ## let ruff repair and format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock: setup  ## resolve all dependencies anew into constraints/
	.venv/bin/python scripts/lock.py

clean:  ## remove caches and build leftovers
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## also remove the environments (never anything under artifacts/)
	@rm -rf .venv .venv-vllm .venv-audit sqtool.egg-info
