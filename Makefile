# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Extra of pyproject.toml that is installed: dev, or ci, which has Ray too.
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)

.PHONY: demo test quick check lint types imports clean

demo: $(STAMP)
	$(BIN)/sd-edge demo --out out/demo

test: check

check: lint types imports
	$(BIN)/python -m pytest

# What is tried after every change: all but the slow tests.
quick: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports --no-logo

# The stamp holds the pins: it is made anew when they change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('anomalysd-edge needs Python 3.11 or newer to train: make PYTHON=python3.12 ...') if sys.version_info < (3, 11) else None"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache .grimp_cache .import_linter_cache
