# Everything a developer does here, as one-line commands; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Every worker of pytest reads all tests, which takes a third less where their bytecode is kept.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install quickstart test fast chaos kills cuts check format clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(BIN)/.installed ## make .venv with the tested versions of everything

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: install ## train a first federation (about a minute) into runs/spatl-1-<time>
	$(BIN)/spatl run configs/quickstart.yaml

test: install ## run all tests, the slow ones too
	$(BIN)/python -m pytest -m '' -n 4 --dist loadfile

fast: install ## run the tests a developer runs while working
	$(BIN)/python -m pytest -n logical --dist loadfile

chaos: kills cuts ## both of these

kills: install ## kill every part of real deployments twenty times and more (a quarter of an hour)
	$(BIN)/python -m tests.studies.chaos --federations 2 --cycles 11 --at-least 20

cuts: install ## cut networks, stop processes, fill disks, set clocks wrong in real deployments (forty minutes)
	$(BIN)/python -m tests.studies.cuts

check: install ## all checks: lint, format, import contracts, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -m '' -n 4 --dist loadfile

format: install ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the checks leave behind (not .venv, not runs/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
