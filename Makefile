# `make demo` and `make test` are all a newcomer needs; both set the environment up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo

.PHONY: help setup demo test test-all lint clean

help:
	@echo "make setup     create .venv and install everything, once"
	@echo "make demo      labelled text -> trained, exported, built, served, three answers"
	@echo "make test      style, types and the fast tests"
	@echo "make test-all  every test, the whole chain on real weights too"
	@echo "make clean     remove .venv and runs"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt service/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py $(DEMO_RUN)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -q -m "not slow" --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

test-all: lint
	$(BIN)/pytest -q

clean:
	rm -rf $(VENV) runs
