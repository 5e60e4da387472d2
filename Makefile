# make setup | demo | test | test-twins | test-slow | bench | lint | docs
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
TWINS := $(VENV)/ready-twins

.PHONY: setup setup-twins demo test test-twins test-slow bench lint docs clean

setup: $(READY)

# Stale when the dependencies have changed since. A half-made .venv has no `ready` and is made anew.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"sideplug needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: give another with make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

# torch, transformers, the benchmark's rivals, and Ray: what the slow tests need.
setup-twins: $(TWINS)

$(TWINS): $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench,ray]'
	@touch $(TWINS)

demo: $(READY)
	$(VENV)/bin/python examples/demo.py

# Each file stays in one process; most of the time tests wait for sockets and processes. Matrix products of several
# threads wait for each other beside other work, and are many times slower.
test: $(READY)
	OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-twins: $(TWINS)
	$(VENV)/bin/python -m pytest -m 'twin and not slow'

test-slow: $(TWINS)
	$(VENV)/bin/python -m pytest -m slow

bench: $(TWINS)
	$(VENV)/bin/sideplug bench --part decode --out build/bench

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	$(VENV)/bin/python -m tests.test_docs

clean:
	rm -rf $(VENV) demo-plugin dist build
