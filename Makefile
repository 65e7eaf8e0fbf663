# Every target sets up .venv by itself; a fresh machine needs only python3 (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Test processes side by side; each of them runs torch on one thread.
WORKERS ?= $(shell nproc)
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test check sweep docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python -m gaudicc.demo

test: .venv/installed
	$(BIN)/pytest -q -n $(WORKERS)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

clean:
	rm -rf .venv build
