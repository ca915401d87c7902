# Two commands do everything on a fresh Debian or Ubuntu with Python 3.11+: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= .gen404/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-vlm ui stack lint format docs bench clean

help: ## Show the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Make the virtual environment with pinned packages

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@command -v git >/dev/null || { echo "git is needed: apt install git"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv is needed: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## Play a whole round in the embedded world (WORKDIR=.gen404/demo)
	$(BIN)/gen404 simulate --workdir $(WORKDIR)

ui: setup ## Open the Dagster UI on a live embedded world: http://127.0.0.1:3000
	$(BIN)/gen404 ui --workdir .gen404/ui

stack: setup ## Play a round on what deploy/ starts, without docker (KEEP=1 goes on)
	$(BIN)/gen404 stack $(if $(KEEP),--keep)

test: setup ## Run the tests
	$(BIN)/python -m pytest

test-slow: setup ## Run the tests with their full counts
	$(BIN)/python -m pytest -m 'not vlm'

test-vlm: setup ## Judge with a real server: OPENAI_BASE_URL, or llama.cpp's, compiled once
	@test -n "$$OPENAI_BASE_URL" || $(BIN)/python -m tests.vlm.llama_server
	$(BIN)/python -m pytest -m vlm tests/vlm

lint: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m gen404_dagster.configuration_page --check docs/configuration.md

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## Write the generated pages
	$(BIN)/python -m gen404_dagster.configuration_page docs/configuration.md

bench: setup ## Measure, and print ratios
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## Remove what was played and cached
	rm -rf .gen404 .pytest_cache .mypy_cache .ruff_cache .hypothesis
