# Everything here works in .venv, which is made from requirements/dev.txt: pinned, with hashes.
# Wanted on the machine: make, and Python 3.11 or newer with venv. Nothing outside this directory is written.

.DEFAULT_GOAL := help
.PHONY: help setup run demo test lint types check format bench soak screenshots floors lock clean

# The first that is new enough, wherever it is; `make PYTHON=/path/to/python ...` decides otherwise.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

help: ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/ready ## Make .venv, or do nothing if it is as it should be

run: setup ## Serve a development provider: loopback, throw-away certificates, ./mimids-dev/
	$(BIN)/mimids serve --dev $(ARGS)

demo: setup ## Play recorded MLS traffic through three providers on loopback
	$(BIN)/mimids demo $(ARGS)

test: setup ## Run the tests; ARGS="tests/wire -x" narrows
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## Format and lint, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy

check: lint types test ## All that must hold before a change goes in; docs and packaging are tests

format: setup ## Format, and mend what lint can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Measure, in ratios against floors of the same run
	$(BIN)/python -m bench $(ARGS)

soak: setup ## Run the tests that take minutes
	$(BIN)/python -m pytest -m soak $(ARGS)

screenshots: setup ## Take the pictures of the console that docs/ shows; wants Chromium
	MIMIDS_SCREENSHOTS=docs/console $(BIN)/python -m pytest tests/e2e/test_console.py

floors: ## Run the tests with each dependency at its floor
	$(MAKE) test VENV=.venv-floors PINS="--floors"

lock: ## Pin anew, for every supported Python (PYTHONS="python3.11 python3.12 ...", all must be there)
	$(PYTHON) requirements/lock.py $(PYTHONS)

clean: ## Remove what was made here; a development provider's data stays
	rm -rf .venv .venv-floors build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

PYTHONS ?= python3.11 python3.12 python3.13
PINS ?= -

# Two stamps: changing pyproject.toml links the project again, changing the pins makes the whole of it again.
$(VENV)/pins: requirements/dev.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mimids needs Python" \
		"3.11 or newer: apt install python3 python3-venv, or name one with 'make PYTHON=/path/to/python ...'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
ifeq ($(PINS),--floors)
	$(PYTHON) requirements/lock.py --floors > $(VENV)/floors.in
	$(BIN)/pip install --quiet --requirement $(VENV)/floors.in
else
	$(BIN)/pip install --quiet --require-hashes --requirement requirements/dev.txt
endif
	@touch $@

$(VENV)/ready: $(VENV)/pins pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
