# Everything here works in .venv, which is made from requirements/dev.txt: pinned, with hashes.
# Needed on the machine: make, and Python 3.11 or newer with venv. Nothing outside this directory is written.

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-all coverage lint types check format docs bench soak screenshots floors newest \
	lock changelog dist clean

# A Python that is named (`make test PYTHON=python3.13`) works in an environment of its own, .venv-3.13. If none is
# named, the first one found that is new enough works in .venv.
ifneq ($(PYTHON),)
ifndef VENV
VENV := $(or $(shell $(PYTHON) -c 'import sys; print(".venv-%d.%d" % sys.version_info[:2])'),\
	$(error $(PYTHON) does not run: name an installed Python 3.11 or newer with PYTHON=))
endif
endif
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PYTHONS ?= python3.11 python3.12 python3.13
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
PINS ?=
COVERAGE ?=

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 19

setup: $(VENV)/ready ## Make .venv, or do nothing if it is as it should be

run: setup ## Serve a development provider: loopback, throw-away certificates, ./mimids-dev/
	$(BIN)/mimids serve --dev $(ARGS)

demo: setup ## Play recorded MLS traffic through three providers on loopback
	$(BIN)/mimids demo $(ARGS)

test: setup ## Run the tests; ARGS="tests/wire -x" selects some, PYTHON=python3.13 another Python
ifeq ($(COVERAGE),)
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
endif

test-all: ## Run the tests on each supported Python that is installed, each in its own .venv-X.Y
	@tested=; failed=; for python in $(PYTHONS); do \
		$$python -c 'import ensurepip, venv' 2>/dev/null || { echo "$$python is not installed: skipped"; continue; }; \
		echo "Testing on $$python"; tested="$$tested $$python"; \
		$(MAKE) test PYTHON=$$python || failed="$$failed $$python"; \
	done; \
	[ -n "$$tested" ] || { echo "None of $(PYTHONS) is installed" >&2; exit 1; }; \
	[ -z "$$failed" ] || { echo "The tests failed on$$failed" >&2; exit 1; }

coverage: ## Run the tests, measure their coverage, and fail below the floor in pyproject.toml
	$(MAKE) test COVERAGE=yes

lint: setup ## Format and lint, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy

check: lint types test ## Everything that a change must pass: lint, types, tests (documents and packaging are tests)

format: setup ## Format, and fix what lint can fix by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## Print what the documents have from code, and build the documentation site in site/
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## Measure, in ratios against floors of the same run
	$(BIN)/python -m bench $(ARGS)

soak: setup ## Run the tests that take minutes
	$(BIN)/python -m pytest -m soak $(ARGS)

screenshots: setup ## Take the pictures of the console that docs/ shows; wants Chromium
	MIMIDS_SCREENSHOTS=docs/console $(BIN)/python -m pytest tests/e2e/test_console.py

floors: ## Run the tests with each dependency at its floor
	$(MAKE) test VENV=.venv-floors PINS=--floors

newest: ## Run the tests with the newest dependencies that pyproject.toml allows
	rm -f .venv-newest/pins
	$(MAKE) test VENV=.venv-newest PINS=--newest

lock: ## Pin the dependencies again; every Python in PYTHONS="python3.11 ..." must be installed
	$(PYTHON) requirements/lock.py $(PYTHONS)

changelog: setup ## Move the notes in changes/ into CHANGELOG.md as VERSION=1.2.3
	@[ -n "$(VERSION)" ] || { echo "Name the version: make changelog VERSION=1.2.3" >&2; exit 1; }
	$(BIN)/towncrier build --yes --version $(VERSION) $(ARGS)

dist: setup ## Build wheel and sdist of the last commit into dist/
	rm -rf build dist && mkdir -p build
	git archive HEAD | tar -x -C build
	cd build && $(abspath $(BIN))/python -m hatchling build -d ../dist
	rm -rf build

clean: ## Remove everything that was made here, except a development provider's data
	rm -rf .venv .venv-* build dist site htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Two stamps: a change of pyproject.toml installs the project again, a change of the pins makes the environment again.
$(VENV)/pins: requirements/dev.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mimids needs Python" \
		"3.11 or newer: apt install python3 python3-venv, or name one with 'make PYTHON=/path/to/python ...'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
ifneq ($(PINS),)
	$(PYTHON) requirements/lock.py $(PINS) > $(VENV)/wishes.in
	$(BIN)/pip install --quiet --requirement $(VENV)/wishes.in
else
	$(BIN)/pip install --quiet --require-hashes --requirement requirements/dev.txt
endif
	@touch $@

$(VENV)/ready: $(VENV)/pins pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
