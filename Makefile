PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt
RUNTIME := $(VENV)/.runtime
TESTED := $(VENV)/.tested
# The demo needs no test extras, and takes an environment that has them as it is.
READY := $(if $(wildcard $(TESTED)),$(TESTED),$(RUNTIME))

# Tests start dozens of processes: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

# What a machine with a GPU runs it with: its own environment, if there is none here.
GPU_PYTHON := $(if $(wildcard $(TESTED)),$(BIN)/python,$(PYTHON))
WHEELS := build/wheels
DEVICE ?= cuda

.PHONY: venv demo test soak bench bench-triage table docs gpu gpu-wheels

venv: $(TESTED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(TESTED): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/qtui demo

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@# mypy takes one core, and not for long: pytest begins beside it.
	$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -rs -n auto --dist worksteal; tests=$$?; \
	wait $$types && exit $$tests

soak: venv
	$(BIN)/python -m pytest -m soak

bench: venv
	$(BIN)/python -m pytest -s -o python_files='bench_*.py' tests/bench

bench-triage: venv
	$(BIN)/python -m tests.bench.bench_triage

table: venv
	$(BIN)/python -m tests.bench.table

gpu:
	$(GPU_PYTHON) -m tests.gpu.check --device $(DEVICE) $(if $(TINY),--tiny) \
		$(if $(wildcard $(WHEELS)),--wheels $(WHEELS)) \
		$(if $(OUT),--out $(OUT)) $(if $(STEPS),--steps $(STEPS))

gpu-wheels: $(BIN)/python
	$(BIN)/python -m tests.gpu.wheels $(WHEELS)

docs: venv
	$(BIN)/python -m tests.docs.reference
