# The only commands to know. `demo` and `test` install what they need on their first call, into .venv.

PYTHON ?= python3
TESTS ?= not full and not slow
VENV := .venv
BIN := $(VENV)/bin
LOWER := .venv-lower-bounds
LOWER_TESTS := layers models loading data recipes checkpoint training cli hubconf weight_files

.PHONY: help demo test test-all test-lower-bounds lint docs bench

help:
	@echo "make demo      set up, then load, train, plot and export on embedded data (3 minutes at most after set-up)"
	@echo "make test      set up, then the tests (about 10 minutes after set-up)"
	@echo "make test-all  also the long tests; then a table of the faults tried and survived (make test TESTS=slow: the rest)"
	@echo "make test-lower-bounds  set up the oldest packages allowed in $(LOWER), then part of the tests"
	@echo "make lint      ruff and mypy"
	@echo "make bench     set up, then most benchmarks (about an hour on two cores with AVX2, 42 to 52 minutes with AMX); BUSY=1: CPU time"
	@echo "make docs      set up, then guides and reference as a site in build/site-docs (no network after set-up)"

demo: $(VENV)/installed-train
	@$(BIN)/python demo.py

test: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "$(TESTS)"

test-all: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

test-lower-bounds: $(LOWER)/installed
	@$(LOWER)/bin/python -m pytest -q -n auto --dist loadfile -W ignore::DeprecationWarning -m "$(TESTS)" $(LOWER_TESTS:%=tests/test_%.py)

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(VENV)/installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q -f tools/reference/mkdocs.yml
	@echo "build/site-docs/index.html"

bench: $(VENV)/installed-dev
	@$(BIN)/python benchmarks/run_all.py $(if $(BUSY),--busy)

# One stamp per extra: the second call installs nothing, and `test` after `demo` only what is still missing.
$(VENV)/installed-%: pyproject.toml | $(BIN)/pip
	@echo "installing hyperzoo[$*] into $(VENV) (torch is large: several GB on the first call)"
	@$(BIN)/python -m pip install --disable-pip-version-check -e ".[$*]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hyperzoo needs Python 3.11 or newer, and $(PYTHON) is not ($$($(PYTHON) -V 2>&1))." \
	       "Name another: make PYTHON=python3.12 demo" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) could not make $(VENV); Debian and Ubuntu need the package python3-venv" >&2; exit 1; }

$(LOWER)/installed: pyproject.toml
	@$(PYTHON) -m venv $(LOWER) && $(LOWER)/bin/python -m pip install --disable-pip-version-check -q uv
	@$(LOWER)/bin/uv pip install --python $(LOWER)/bin/python --resolution lowest-direct \
	  -e ".[train]" "pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.6"
	@touch $@
