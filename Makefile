# Everything runs in .venv, which is made on first use: `make demo` and `make test` need nothing else.
PYTHON ?= python3
BIN := .venv/bin
TAUFREE := $(BIN)/taufree
# Test processes in parallel, one thread each; more than 8 only costs start-up time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

.PHONY: help venv demo examples test test-slow weights lint typecheck check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       deorbitalized benzene beside its parent"
	@echo "make test       the test suite, but for the slow tests"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make lint       ruff: style, imports, docstrings, formatting"
	@echo "make typecheck  mypy --strict on the package"
	@echo "make check      lint, typecheck and test"
	@echo "make examples   run every example script"
	@echo "make weights    data and trainings of ms2 and r2scan, into the package: many hours; goes on where it stopped"
	@echo "make venv       only make .venv (PYTHON=python3.12 to choose the interpreter)"

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("taufree needs Python 3.11 or newer: make venv PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: venv
	$(TAUFREE) run examples/benzene.xyz --parent

examples: venv
	for script in examples/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

test: venv
	$(PYTEST) -m "not slow"

test-slow: venv
	$(PYTEST) -m slow

# Every step goes on where it was interrupted.
weights: venv
	$(TAUFREE) data build data
	for run in ms2-base ms2-relaxed ms2-pseudo ms2 r2scan; do $(TAUFREE) train configs/$$run.toml || exit 1; done
	cp runs/ms2/ms2.* runs/r2scan/r2scan.* src/taufree/weights/

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: venv
	$(BIN)/mypy

check: lint typecheck test

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
