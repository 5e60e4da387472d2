# make setup | demo | test | test-slow | lint | docs
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: setup demo test test-slow lint docs clean

setup: $(READY)

# Stale when the dependencies have changed since. A half-made .venv has no `ready` and is made anew.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"sideplug needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: give another with make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cloud,bench,dev]'
	@touch $(READY)

demo: $(READY)
	$(VENV)/bin/python examples/demo.py

test: $(READY)
	$(VENV)/bin/python -m pytest

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/python -m tests.test_docs

clean:
	rm -rf $(VENV) demo-plugin dist build
