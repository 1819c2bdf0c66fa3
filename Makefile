# `make` sets up and builds everything; `make test` sets up and proves it. Needs Python 3.11+, git and make, nothing else.

PYTHON ?= python3
VENV := .venv
# DVC's stages run whatever `python` comes first on PATH: it must be the environment's.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: all setup setup-dev test lint check clean

all: setup
	dvc repro
	@lmlab summary

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("error: lmlab needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# The versions are those in constraints.txt, so that the same code is tested everywhere.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): PyTorch and DVC are large, this takes a few minutes"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: lint
	pytest -n auto --maxprocesses 4 --dist worksteal

lint: setup-dev
	ruff format --check .
	ruff check .
	mypy
	lmlab check

clean:
	rm -rf $(VENV) .scratch .mypy_cache .ruff_cache .pytest_cache
