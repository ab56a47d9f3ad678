# `make demo` and `make test` are all a newcomer needs; both set the environment up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo
# Two processes of tests, each file whole in one of them: what a module made once is made once.
WORKERS := -n 2 --dist loadfile

.PHONY: help setup demo test test-slow test-all test-faults test-browser-setup test-promtool-setup screenshots image test-image lint clean \
	bench-http bench-batching bench-scale bench-train bench-serve bench-soak bench-sizing bench-gates bench-int8 \
	bench-compare bench-quality bench-predict bench-kills bench-promises bench-optimism bench-few bench-threads

help:
	@echo "make setup     create .venv and install everything, once"
	@echo "make demo      labelled text -> trained, exported, built, served, three answers"
	@echo "make test      style, types and the fast tests"
	@echo "make test-slow the others: real weights, browsers, runs that are killed"
	@echo "make test-all  every test, the whole chain on real weights too"
	@echo "make test-faults  a real server and what may happen to it: half an hour"
	@echo "make image     the newest bento as a container image; BENTO=, ENGINE=, PLATFORM=, REPOSITORY="
	@echo "make test-image  an image built and run for real, by podman or docker"
	@echo "make screenshots  take the README's pictures again      -> docs/"
	@echo "make bench-http      what HTTP costs the server       -> benchmarks/results/http.json"
	@echo "make bench-scale     one process and two, by connections -> benchmarks/results/scale.json"
	@echo "make bench-batching  what the engine costs and gains  -> benchmarks/results/batching.json"
	@echo "make bench-serve     the service beside other servers -> benchmarks/results/serve.{json,md,png}"
	@echo "make bench-soak      15 minutes at 70 % of capacity   -> benchmarks/results/soak.{json,png}"
	@echo "make bench-sizing    texts a second and core           -> benchmarks/results/sizing.json"
	@echo "make bench-predict   scoring files beside a raw loop   -> benchmarks/results/predict.{json,md}"
	@echo "make bench-kills     a large file from S3, killed ten times -> benchmarks/results/kills.json"
	@echo "make bench-train     training beside the tutorial's    -> benchmarks/results/train.{json,md,png}"
	@echo "make bench-gates     how often the gates err           -> benchmarks/results/gates.json"
	@echo "make bench-promises  is a wanted precision kept       -> benchmarks/results/promises.json"
	@echo "make bench-optimism  how much validation flatters     -> benchmarks/results/optimism.json"
	@echo "make bench-int8      int8 by token beside int8 by batch -> benchmarks/results/int8.json"
	@echo "make bench-compare   how often its verdicts err        -> benchmarks/results/promotion.json"
	@echo "make bench-quality   what the defaults reach; DATA= (public sets), SETS=, ROWS= -> benchmarks/results/quality.{json,md,png}"
	@echo "make bench-few       few rows a label, beside SetFit and others; DATA=, SETS=, ROWS=, SEEDS=, METHODS= -> benchmarks/results/few_rows.{json,md,png}"
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
	$(BIN)/pytest -q $(WORKERS) -m "not slow" --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

test-slow: setup test-browser-setup test-promtool-setup
	$(BIN)/pytest -q $(WORKERS) -m slow

test-all: lint test-browser-setup test-promtool-setup
	$(BIN)/pytest -q $(WORKERS)

test-faults: setup
	$(BIN)/pytest -q -m faults

# Debian's browser, for the tests of pages; where it is there already nothing is done.
test-browser-setup:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		{ apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; }

# Prometheus' own checker of alerts, out of Debian's package: the server is not installed.
test-promtool-setup: setup
	@command -v promtool >/dev/null || test -x $(BIN)/promtool || \
		{ folder=$$(mktemp -d) && cd $$folder && apt-get update -qq && \
		apt-get download -qq prometheus && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar x ./usr/bin/promtool && \
		cp usr/bin/promtool $(CURDIR)/$(BIN)/promtool && rm -r $$folder; }

screenshots: setup test-browser-setup
	$(BIN)/pytest -q tests/test_chain.py -k in_a_browser --screenshots docs

image: setup
	$(BIN)/whetstone image $(BENTO) $(if $(ENGINE),--engine $(ENGINE)) \
		$(if $(PLATFORM),--platform $(PLATFORM)) \
		$(if $(REPOSITORY),--image_repository $(REPOSITORY))

test-image: setup
	bash tests/image/run.sh $(BIN)

# The example's model as it would be served: int8, reading up to 512 tokens.
BENCH_KEYS := --output_dir runs/bench --max_length 512 --precision int8

runs/bench/package/manifest.json: | setup
	$(BIN)/whetstone train examples/support_tickets/recipe.yaml $(BENCH_KEYS)
	$(BIN)/whetstone export examples/support_tickets/recipe.yaml $(BENCH_KEYS)

bench-http: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_http

bench-scale: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.scale

bench-batching: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_batching

bench-serve: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_serve

bench-soak: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_soak

bench-sizing: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.sizing

bench-predict: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_predict

bench-kills: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.bench_kills

bench-train: setup
	$(BIN)/python -m benchmarks.bench_train

# In a cgroup with a quota of one core, which it makes: as root.
bench-threads: setup
	$(BIN)/python -m benchmarks.bench_threads $(if $(QUOTA),--quota $(QUOTA))

bench-int8: runs/bench/package/manifest.json
	$(BIN)/python -m benchmarks.int8

bench-gates: setup
	$(BIN)/python -m benchmarks.gates

bench-promises: setup
	$(BIN)/python -m benchmarks.promises

bench-optimism: setup
	$(BIN)/python -m benchmarks.optimism

bench-compare: setup
	$(BIN)/python -m benchmarks.promotion

# Without a folder of public sets the example alone.
bench-quality: setup
	$(BIN)/python -m benchmarks.bench_quality $(if $(DATA),--data $(DATA)) \
		$(if $(SETS),--sets $(SETS)) $(if $(ROWS),--rows $(ROWS))

# SetFit in an environment of its own, which this makes; METHODS= can leave it out.
bench-few: setup
	$(BIN)/python -m benchmarks.few_rows --data $(DATA) $(if $(SETS),--sets $(SETS)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(METHODS),--methods $(METHODS))

clean:
	rm -rf $(VENV) runs
