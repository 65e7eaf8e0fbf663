# Every target sets up .venv by itself; a fresh machine needs only python3 (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Test processes side by side; each of them runs torch on one thread. `nproc` would count what OMP_NUM_THREADS says, which
# `make check` has set by the time that it makes `test`.
WORKERS ?= $(shell env -u OMP_NUM_THREADS nproc)
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

TORCH ?= 2.10.0
TORCH_ENV := .venv-torch-$(TORCH)
TORCH_TABLE := docs/tables/torch_$(subst .,_,$(basename $(TORCH))).md

.PHONY: setup demo test test-torch check sweep docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/gaudicc run sentence-encoder --query "my plane is late" --top 5 --compare
	$(BIN)/gaudicc compile sentence-encoder --diff recognize-attention
	$(BIN)/gaudicc check cuda-style-llm
	$(BIN)/gaudicc run cuda-style-llm --compare

test: .venv/installed
	$(BIN)/pytest -q -n $(WORKERS) -m "not sweep"

# The suite on another torch, in an environment of its own: several GB from the registry, so CI leaves it out.
# Tests that this torch cannot run are named in the first column of the table of its version, and explained beside it.
test-torch:
	test -x $(TORCH_ENV)/bin/python || $(PYTHON) -m venv $(TORCH_ENV)
	sed '/^torch==/d' constraints.txt > $(TORCH_ENV)/constraints.txt
	$(TORCH_ENV)/bin/pip install --quiet --disable-pip-version-check --constraint $(TORCH_ENV)/constraints.txt \
		torch==$(TORCH) --editable '.[dev]'
	touch $(TORCH_ENV)/excluded
	test ! -f $(TORCH_TABLE) || sed -n 's/^| `\(tests[^`]*::[^`]*\)` .*/--deselect=\1/p' $(TORCH_TABLE) > $(TORCH_ENV)/excluded
	$(TORCH_ENV)/bin/pytest -q -n $(WORKERS) -m "not sweep" $$(cat $(TORCH_ENV)/excluded)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# Slow measurements; each table in docs/tables names the command that made it.
sweep: .venv/installed
	$(BIN)/pytest -q -n $(WORKERS) -m sweep
	$(BIN)/python -m gaudicc.bench.legal_models --usage docs/tables/zoo_ops.json > docs/tables/model_legal.md
	$(BIN)/python -m gaudicc.bench.legal > docs/tables/op_db_legal.md
	for dtype in bfloat16 int64 bool; do $(BIN)/python -m gaudicc.bench.legal --dtype $$dtype > docs/tables/op_db_legal_$$dtype.md; done
	$(BIN)/gaudicc bench compile > docs/tables/bench_compile.md
	$(BIN)/python -m gaudicc.bench.calls > docs/tables/bench_calls.md
	$(BIN)/python -m gaudicc.models.zoo > docs/tables/model_zoo.md
	$(BIN)/python tests/padding/test_padding_zoo.py > docs/tables/padding_zoo.md
	$(BIN)/python tests/lm/test_lm_zoo.py > docs/tables/lm_zoo.md
	$(BIN)/python -m tests.runtime.test_hpu_zoo > docs/tables/hpu_zoo.md
	$(BIN)/gaudicc bench lm --save docs/tables/bench_lm.json > docs/tables/bench_lm.md
	$(BIN)/python -m gaudicc.machine.split_table > docs/tables/split_attention.md
	$(BIN)/python -m gaudicc.machine.validate > docs/tables/machine_validation.md
	$(BIN)/python -m gaudicc.bench.buckets --counts 8 32 --output docs/tables/buckets.md

# The pages that are written from docstrings.
docs: .venv/installed
	$(BIN)/python -m gaudicc.docs

clean:
	rm -rf .venv build
