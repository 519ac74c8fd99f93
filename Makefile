# Everything here works in .venv, which is made from requirements/dev.txt: pinned, with hashes.
# Needed on the machine: make, and Python 3.11 or newer with venv. Nothing outside this directory is written.

.DEFAULT_GOAL := help
.PHONY: help setup run demo terminal-chat chat test test-all coverage lint types check format clients docs bench soak fuzz mutants \
	screenshots floors newest lock changelog dist clean

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
MODULES ?=
PINS ?=
COVERAGE ?=
SEED ?= 1
FUZZ_SECONDS := $(or $(SECONDS),60)

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 19

setup: $(VENV)/ready ## Make .venv, or do nothing if it is as it should be

run: setup ## Serve a development provider: loopback, throw-away certificates, ./mimids-dev/
	$(BIN)/mimids serve --dev $(ARGS)

demo: setup ## Play recorded MLS traffic through three providers on loopback
	$(BIN)/mimids demo $(ARGS)

terminal-chat: setup ## Chat in two panes of a terminal: two people, two providers
	$(BIN)/python examples/terminal_chat/start.py $(ARGS)

chat: setup ## Chat in a browser: three people, three providers on loopback; wants npm
	$(BIN)/python -m examples.chat.serve $(ARGS)

# With HALVES=yes the tests run as two processes side by side, as in CI; the output of the first half comes at the end.
# A test that takes longer than five minutes ends its half, with a traceback of all threads.
HALF := --durations=25 -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true
FIRST_HALF := $(addprefix tests/,abuse clients docs ds mls policy privacy stacks store)
# With STORE=postgresql the providers of these tests are stored in a PostgreSQL server that the tests start.
# SHARE=5 runs one test of five, chosen by SEED.
STORE ?=
SHARE ?=
ON_POSTGRESQL := tests/store tests/ds tests/http tests/e2e
ifeq ($(STORE),postgresql)
export MIMIDS_TEST_STORE := postgresql
ARGS := $(or $(ARGS),$(ON_POSTGRESQL))
endif
ifneq ($(SHARE),)
export MIMIDS_TEST_SHARE := $(SHARE) $(SEED)
endif
PYTEST := $(if $(COVERAGE),$(BIN)/coverage run -m pytest,$(BIN)/python -m pytest)

test: setup ## Run the tests; ARGS="tests/wire -x" selects some, PYTHON=python3.13 another Python, STORE=postgresql
	$(if $(COVERAGE),$(BIN)/coverage erase)
ifeq ($(HALVES),)
	$(PYTEST) $(ARGS)
else
	@log=$$(mktemp); $(PYTEST) $(HALF) $(FIRST_HALF) >$$log 2>&1 & first=$$!; status=0; \
	$(PYTEST) $(HALF) tests $(addprefix --ignore=,$(FIRST_HALF)) || status=$$?; \
	wait $$first || status=$$?; cat $$log; rm $$log; exit $$status
endif
ifneq ($(COVERAGE),)
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
	$(MAKE) test COVERAGE=yes HALVES=yes

lint: setup ## Format and lint, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Check types
	$(BIN)/mypy

check: lint types test ## Everything that a change must pass: lint, types, tests (documents and packaging are tests)

format: setup ## Format, and fix what lint can fix by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clients: setup ## Print the codecs of the TypeScript client and, where npm is, build it in clients/typescript/dist/
	$(BIN)/python -m docs.generate.typescript
	if command -v npm >/dev/null; then cd clients/typescript && npm ci && npm run build; fi

docs: setup ## Print what the documents have from code, and build the documentation site in site/
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup ## Measure, in ratios against floors of the same run
	$(BIN)/python -m bench $(ARGS)

soak: setup ## Run the tests that take minutes, and all that run on PostgreSQL
	$(BIN)/python -m pytest -m soak $(ARGS)
ifeq ($(ARGS),)
	$(MAKE) test STORE=postgresql
endif

fuzz: $(VENV)/fuzz-pins ## Fuzz decoders and signed commits for SECONDS=60; NAMES="bhttp trees" selects targets, SEED=2 varies it
	PYTHONHASHSEED=0 $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS) --seed $(SEED) $(NAMES)

mutants: setup ## Put faults into the code, one at a time, and list those that no test notices; MODULES= names some
	$(BIN)/python -m tests.mutation $(ARGS) $(MODULES)

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
	rm -rf .venv .venv-* build dist site htmlcov .fuzz .coverage* .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis tests/stacks/target tests/stacks/Cargo.lock examples/chat/dist examples/chat/node_modules

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

$(VENV)/fuzz-pins: $(VENV)/ready requirements/fuzz.txt
	$(BIN)/pip install --quiet --require-hashes --requirement requirements/fuzz.txt
	@touch $@

$(VENV)/ready: $(VENV)/pins pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
