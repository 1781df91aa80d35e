# Two commands are all a fresh machine needs: `make run` and `make test`.
PORT ?= 8080
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The official Node SDK and an application that uses it; npm keeps the second file up to date itself.
NPM_PROJECTS := tests/sdk/node tests/sdk/apps/express
NPM_DONE := node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help run test check format bench chaos clean

help:  ## Show this help
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run  ## Install into .venv and start the relay on embedded SQLite (PORT=8080)
	@$(BIN)/relay dev --port $(PORT)

test: $(VENV)/.dev $(NPM_PROJECTS:=/$(NPM_DONE))  ## Install everything the tests need, then run the whole suite
	$(BIN)/pytest -n 2 --dist loadgroup

check: $(VENV)/.dev  ## Format, lint, types, architecture and contract checks, and a minute of made-up requests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py tests/test_openapi.py
	$(BIN)/python -m tests.fuzz

format: $(VENV)/.dev  ## Rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## Run the benchmarks and print their ratios (minutes)
	$(BIN)/python -m tests.bench

chaos: $(VENV)/.dev  ## Kill, freeze and starve relays and databases, and count what is lost (a quarter of an hour)
	$(BIN)/python -m tests.crash

clean:  ## Remove the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	rm -rf $(NPM_PROJECTS:=/node_modules)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run

# Node itself comes with the development dependencies. It trusts whom the machine trusts, as pip does.
%/$(NPM_DONE): %/package-lock.json | $(VENV)/.dev
	cd $* && NODE_OPTIONS=--use-system-ca $(abspath $(BIN))/npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
