# Everything that a fresh machine with Python >= 3.11 and pip needs: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO ?= demo
DEMO_ROWS ?= 3000
# More than the cores of a small machine: tests of servers and deadlines wait more than they compute.
TEST_PROCESSES ?= 3

.PHONY: help demo test test-slow test-numbers lint docs reference package bench pins clean
help:
	@echo "make demo       set up, simulate a small survey, run the model over it, show the result"
	@echo "make demo KILL=3  the same, and kill -9 the worker of rank 3 in the middle of a collective"
	@echo "make test       set up, lint, type-check, build the docs, pass the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make test-numbers  what must not depend on threads, cores or kernels, under four settings"
	@echo "make docs       build the documentation into site/"
	@echo "make reference  make the reference pages anew from the program's own text"
	@echo "make bench      the benchmarks (leave the machine alone meanwhile)"
	@echo "make package    build wheel and sdist, check them, install the wheel into an empty environment"
	@echo "make pins       raise the pinned versions in constraints.txt"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"perseid needs Python >= 3.11, but {sys.executable} is {v}: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing perseid and what the demo needs into $(VENV) (about a minute) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing perseid and what development needs, torch among it, into $(VENV) (minutes) ..."
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.demo

$(VENV)/.slow: $(VENV)/.dev
	@$(PIP) -e ".[dev,fuzz,bench]"
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/perseid demo --rows $(DEMO_ROWS) --out $(DEMO) $(if $(KILL),--run-with "scripts/killed_run.py --kill-rank $(KILL)")

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict --quiet

reference: $(VENV)/.dev
	for page in cli api request; do $(BIN)/python scripts/$${page}_reference.py; done

package: $(VENV)/.dev
	rm -rf dist build/empty
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd build && rm -rf perseid-demo && empty/bin/perseid demo --rows 600

test: lint docs
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadgroup

test-slow: lint docs $(VENV)/.slow
	PERSEID_FUZZ_SECONDS=600 $(BIN)/python -m pytest -m slow --timeout 1800

NUMBERS := $(BIN)/python -m pytest -m "numbers and not slow" -n 2
test-numbers: $(VENV)/.dev
	taskset -c 0 $(NUMBERS)
	OPENBLAS_NUM_THREADS=1 $(NUMBERS)
	OPENBLAS_NUM_THREADS=2 $(NUMBERS)
	OPENBLAS_CORETYPE=Haswell $(NUMBERS)

pins:
	$(PYTHON) scripts/pins.py

bench: $(VENV)/.slow
	$(BIN)/python benchmarks/worker.py
	$(BIN)/python benchmarks/local_engine.py
	$(BIN)/python benchmarks/rendezvous.py
	$(BIN)/python benchmarks/comm.py
	$(BIN)/python benchmarks/collect.py
	$(BIN)/python benchmarks/explore.py

clean:
	rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
