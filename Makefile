# Each target makes what it needs; `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint requirements.lock

.PHONY: demo test lint types test-slow format lock clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LaMM needs Python 3.11 or later; call make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "installing LaMM into $(VENV)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "installing LaMM and its development tools into $(VENV)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core  ## pre-train and fine-tune on the shipped data; write runs/demo/report.html
	$(BIN)/lamm demo --to runs/demo --force

test: lint types  ## lint, types and tests
	$(BIN)/pytest

lint: $(VENV)/.dev  ## ruff and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/.dev  ## mypy --strict on src
	$(BIN)/mypy

test-slow: $(VENV)/.dev  ## the long checks: the whole demo, two-process runs, kill and resume
	$(BIN)/pytest -m slow

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.dev  ## make requirements.lock again from pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --extra dev --extra chem \
	  --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --constraint requirements.in --output-file requirements.lock pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' requirements.lock

clean:  ## remove the environment and every run
	rm -rf $(VENV) runs build .mypy_cache .pytest_cache .ruff_cache
