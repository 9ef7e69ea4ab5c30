# Every target sets itself up: `.venv` is made once, and again when pyproject.toml changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROTOCOL := protocol/requeue_protocol

.PHONY: help install demo test e2e lint format generate manifests screenshots helm kube-linter lock fuzz bench soak clean
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## .venv with the project (editable) and all it needs
$(STAMP): pyproject.toml
	@echo "setting up $(VENV) (once, about a minute) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; this is %s. Set PYTHON=/path/of/python3.11" % sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -e '.[worker,operator,dev]'
	@touch $(STAMP)
	@echo "done: $(VENV)"

lint: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy protocol/requeue_protocol protocol/requeue_client worker/requeue_worker operator/requeue_operator
	$(BIN)/lint-imports

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

KEEP ?=
demo: $(STAMP) ## the main job on a nats-server of its own; KEEP=1 leaves it running
	@$(BIN)/python -m requeue_client.demo $(if $(filter-out 0,$(KEEP)),--keep)

# Much of the suite waits: for disks, timers, replies. Two processes of it keep two cores busy.
JOBS ?= 1
PARALLEL := $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadfile --no-loadscope-reorder)
test: $(STAMP) ## the whole suite, on a real nats-server and a real disk; JOBS=2 in two processes
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not e2e" tests

E2E ?=
e2e: helm ## real pods on a node of one's own (root, Linux), or on the cluster of KUBECONFIG; E2E='-k scale'
	$(BIN)/python -m pytest -m e2e --durations=0 $(E2E) tests/e2e

soak: $(STAMP) ## what takes minutes: a million records, every crash by everyone who can come next
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -m slow tests

generate: $(STAMP) ## FlatBuffers code, the CRD, the chart's README (commit what it writes)
	$(BIN)/flatc --python --gen-onefile -o $(PROTOCOL)/flatbuf $(PROTOCOL)/requeue_msg.fbs $(PROTOCOL)/stats_msg.fbs
	$(BIN)/python -m requeue_operator.crd crds/requeuequeues.requeue.dev.yaml charts/nats-requeue/files/requeuequeues.requeue.dev.yaml
	$(BIN)/python charts/generate.py readme

screenshots: $(STAMP) ## docs/img from the web view in the system's Chromium (commit what it writes)
	$(BIN)/python -m tests.browser.screenshots

manifests: helm ## examples/install.yaml from the chart, for kubectl (commit what it writes)
	$(BIN)/python charts/generate.py manifest

HELM_VERSION := v4.3.1
helm: $(STAMP) ## helm into .venv, for tests/chart; from source, with Go >= 1.26 (minutes, once)
	@test -x $(BIN)/helm || { echo "building helm $(HELM_VERSION) (once, some minutes) ..."; \
	  PATH="$(CURDIR)/$(BIN):$$PATH" GOBIN="$(CURDIR)/$(BIN)" GOFLAGS= CGO_ENABLED=0 \
	  go install -trimpath helm.sh/helm/v4/cmd/helm@$(HELM_VERSION); }

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
  --no-emit-index-url --no-emit-find-links --upgrade --custom-compile-command 'make lock'
lock: $(STAMP) ## the image's dependencies, newest that fit, with their hashes (commit what it writes)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(COMPILE) -o worker/image/build.lock worker/image/build.in
	$(COMPILE) --no-binary nkeys --extra worker --extra operator -o worker/image/requirements.lock pyproject.toml

KUBE_LINTER_VERSION := v0.7.6
kube-linter: $(STAMP) ## kube-linter into .venv, for tests/chart; from source, with Go >= 1.26 (minutes, once)
	@test -x $(BIN)/kube-linter || { echo "building kube-linter $(KUBE_LINTER_VERSION) (once, some minutes) ..."; \
	  PATH="$(CURDIR)/$(BIN):$$PATH" GOBIN="$(CURDIR)/$(BIN)" GOFLAGS= CGO_ENABLED=0 \
	  go install -trimpath golang.stackrox.io/kube-linter/cmd/kube-linter@$(KUBE_LINTER_VERSION); }

FUZZ_SECONDS ?= 60
fuzz: $(STAMP) ## feed the readers with noise, FUZZ_SECONDS each (60)
	$(BIN)/python tests/fuzz/fuzz_envelope.py -max_total_time=$(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/fuzz_headers.py -max_total_time=$(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/fuzz_replies.py -max_total_time=$(FUZZ_SECONDS)

# What to measure: make bench BENCH='ingest --n 500000 --queues 8', or --data-dir for another disk.
BENCH ?= all --peer jetstream --peer jetstream-sync
bench: $(STAMP) ## ingest, replay, lateness, start-up, and JetStream beside them (BENCH=..., see requeue bench -h)
	$(BIN)/requeue bench $(BENCH)

BASE ?= HEAD^
bench-check: $(STAMP) ## does a message cost more CPU than in the parent commit (BASE=...)? Fails beyond 25 %; a minute
	$(BIN)/python -m tests.performance.paired --base $(BASE)

bench-docs: $(STAMP) ## tables and plots of docs/benchmarks.md, from docs/benchmarks/*.json
	$(BIN)/python -m tests.performance.render

clean: ## remove what was built
	rm -rf $(VENV) build dist .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
