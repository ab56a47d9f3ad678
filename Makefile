# `make demo` and `make test` are all a newcomer needs; both set the environment up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo

.PHONY: help setup demo test test-all lint clean bench-http bench-batching

help:
	@echo "make setup     create .venv and install everything, once"
	@echo "make demo      labelled text -> trained, exported, built, served, three answers"
	@echo "make test      style, types and the fast tests"
	@echo "make test-all  every test, the whole chain on real weights too"
	@echo "make bench-http      what HTTP costs the server       -> benchmarks/results/http.json"
	@echo "make bench-batching  what the engine costs and gains  -> benchmarks/results/batching.json"
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

# The example's model as it would be served: int8, reading up to 512 tokens.
BENCH_KEYS := --output_dir runs/bench --max_length 512 --precision int8

runs/bench/package/manifest.json: | setup
	$(BIN)/whetstone train examples/support_tickets/recipe.yaml $(BENCH_KEYS)
	$(BIN)/whetstone export examples/support_tickets/recipe.yaml $(BENCH_KEYS)

bench-http: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_http

bench-batching: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_batching

clean:
	rm -rf $(VENV) runs
