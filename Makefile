# make demo    see it work: an environment of its own in .venv, then `eroseal demo`
# make test    all tests of the CI tier         make lint    ruff, formatting, mypy --strict
# make bench   measurements against the peers   make soak    long and large runs
# make docs    man pages, completions, schemas  make lock    the locked dependencies, anew
#
# EROSEAL_PYTHON chooses the interpreter, EROSEAL_PEERS a directory of tools to compare with that comes before
# PATH, JOBS the number of test processes, PYTEST_ARGS further arguments such as `-k name`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check --no-input
JOBS ?= auto
PYTEST_ARGS ?=
BENCH_ARGS ?=
NATIVE := $(wildcard src/eroseal/crypto/*.c src/eroseal/crypto/native/*.[ch])
PROJECT := pyproject.toml setup.py src/eroseal/__init__.py $(NATIVE)

.PHONY: help demo test lint bench soak docs lock clean
help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

$(PYTHON):
	@python=$$(scripts/find-python.sh) && "$$python" -m venv --clear $(VENV)

# Hashes are checked for everything that comes from an index; the project itself is built without isolation,
# so that nothing unlocked is fetched behind the lock's back.
$(VENV)/.installed: requirements.lock $(PROJECT) | $(PYTHON)
	@echo "eroseal: installing into $(VENV)" >&2
	@PYTHON=$(PYTHON) scripts/debian-packages.sh native
	@$(PIP) install --quiet --require-hashes --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.developed: requirements-dev.lock $(VENV)/.installed
	@scripts/debian-packages.sh peers
	@$(PIP) install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/eroseal demo

test: $(VENV)/.developed
	$(PYTHON) -m pytest --numprocesses=$(JOBS) -m 'not soak' $(PYTEST_ARGS)

soak: $(VENV)/.developed
	EROSEAL_HYPOTHESIS=soak $(PYTHON) -m pytest -m soak $(PYTEST_ARGS)

lint: $(VENV)/.developed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict src

bench: $(VENV)/.developed
	$(PYTHON) benchmarks/run.py --write docs/measurements.md $(BENCH_ARGS)

docs: $(VENV)/.developed
	$(PYTHON) -m eroseal.cli.generate docs/

lock: $(VENV)/.developed
	EROSEAL_VENV=$(VENV) scripts/lock.sh

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f src/eroseal/crypto/*.so
