# AgentBox on one machine. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

REPLICAS ?= 1
# Where boxes run: containerd, kubernetes (a local one of one node, which the first run builds in
# minutes), or both: containerd,kubernetes.
RUNTIME ?= containerd
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/agentbox
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
TRIPLE = $(shell uname -m)-unknown-linux-gnu
BOXD = $(TARGET)/static/$(TRIPLE)/boxd/boxd
SERVICES := -p agentbox-api-gateway -p agentbox-auth -p agentbox-scheduler -p agentbox-exec-proxy -p agentbox-webhooks -p agentbox-provisioner
# The profile of `make up`: `dev` compiles in minutes and shares its builds with `make dev`; `release`
# optimizes.
PROFILE ?= dev
# The programs of `make up` and those of images and benchmarks.
LOCAL = $(TARGET)/$(patsubst dev,debug,$(PROFILE))/agentbox-local
RELEASE = $(TARGET)/release/agentbox-local
# Not in the workspace.
FUZZ_MANIFEST := loadtest/fuzz/Cargo.toml
DENY_VERSION := 0.20.2
DENY = $(CACHE)/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
SPECTRAL_VERSION := 6.16.3
SPECTRAL = $(CACHE)/spectral-$(SPECTRAL_VERSION)/node_modules/.bin/spectral
ASYNCAPI_VERSION := 3.6.6
ASYNCAPI = $(CACHE)/asyncapi-parser-$(ASYNCAPI_VERSION)/node_modules
NATS_PY_VERSION := 2.16.0
NATS_PY = $(CACHE)/nats-py-$(NATS_PY_VERSION)

.PHONY: help up observe down status doctor logs clean dev build build-local boxd gvisor packages test-fast test test-all test-cluster test-observe test-connections test-browser test-clients test-events images check check-fast hooks fmt bench bench-compare profile fuzz fuzz-parsers deny lint-api lint-events

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

up: build-local ## Install what is missing, build, start everything, wait until it is ready (REPLICAS=3, PROFILE=release, RUNTIME=kubernetes or containerd,kubernetes, NATS_TLS=1, NETWORK_BANDWIDTH=none, OBSERVE=1)
	@REPLICAS=$(REPLICAS) RUNTIME=$(RUNTIME) OBSERVE=$(OBSERVE) $(LOCAL) up

observe: ## Start a trace collector, Jaeger, Prometheus and the canary beside the running system
	@$(MAKE) --no-print-directory build-local OBSERVE=1
	@$(LOCAL) observe

down: ## Stop everything, leave nothing running or mounted, and keep the data
	@$(call local) down

status: ## Print the state of each process, and why one is not ready
	@$(call local) status

doctor: build-local ## Check whether this machine can run AgentBox, one line for each check
	@$(LOCAL) doctor

logs: ## Print the last log lines (SERVICE=auth for one service, FOLLOW=1 to follow)
	@$(call local) logs $(SERVICE) $(if $(FOLLOW),--follow)

clean: ## Stop everything and remove its data
	@$(call local) clean

dev: ## Rebuild and restart one service of the running system when its sources change (SERVICE=scheduler)
	@$(call local) dev $(SERVICE)

packages: ## Install the Debian packages that are missing
	@bash deploy/local/packages.sh $(findstring kubernetes,$(RUNTIME))
	@$(if $(OBSERVE),bash deploy/local/packages.sh observe)

build-local: packages boxd
	cargo build --profile $(PROFILE) $(SERVICES) -p agentbox-local $(if $(OBSERVE),-p agentbox-loadtest)

build: packages boxd ## Build the release programs
	cargo build --release $(SERVICES) -p agentbox-local -p agentbox-loadtest

# boxd is static, so that it runs in any image. It has its own target directory, because its compiler
# flags differ.
boxd: packages ## Build boxd, the program inside every box
	RUSTFLAGS="-C target-feature=+crt-static" cargo build -p agentbox-boxd --profile boxd \
	  --target $(TRIPLE) --target-dir $(TARGET)/static

images: build ## Build the container images of the services and of boxd (REGISTRY=registry.example/team TAG=1.0)
	@$(RELEASE) images $(TARGET)/images $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(TAG),--tag $(TAG))

gvisor: ## Build gVisor, so that requests may name it as their runtime_class
	@bash deploy/gvisor/build.sh

# All programs and tests are compiled by one command, so that no part is built twice: `cargo build --bins`
# would build dependencies again, with fewer features.
test-build: packages boxd
	cargo build --workspace --all-targets --quiet

test-fast: packages boxd ## Run the unit tests, and the suites that need Postgres and NATS but no box
	@cargo test --workspace --no-run --quiet
	@.ci/suites fast

test: test-build ## Run all tests that need no Kubernetes and no gVisor
	$(TARGET)/debug/agentbox-local prepare
	@.ci/suites machine

# The first time, Kubernetes and gVisor are built from their sources.
test-all: test-build gvisor ## Run all tests of CI, also on gVisor and Kubernetes
	$(TARGET)/debug/agentbox-local prepare --kubernetes
	@.ci/suites all

test-cluster: test-build ## Test the Helm chart, and instances whose boxes run on Kubernetes
	$(TARGET)/debug/agentbox-local prepare --kubernetes
	@.ci/suites cluster

# The first time, Jaeger and the trace collector are built from their sources.
test-observe: test-build ## Test dashboards, rules, alerts and traces with Prometheus, Jaeger and a trace collector
	$(TARGET)/debug/agentbox-local prepare --observe
	@promtool check config --syntax-only deploy/observability/prometheus/prometheus.yml
	@promtool check rules deploy/observability/prometheus/rules.yaml
	@promtool test rules deploy/observability/prometheus/tests/*.yaml
	@.ci/suites observe

# One descriptor for each connection, in the test and in the gateway.
test-connections: test-build ## Test the default limits of connections with 10,500 hostile ones
	$(TARGET)/debug/agentbox-local prepare
	@ulimit -n 16384; AGENTBOX_TEST_CONNECTIONS=10500 cargo test --workspace --test routes -- --nocapture \
	  --exact connections::connections_of_one_network_delay_no_other_network | tee /dev/stderr \
	  | grep '^test result: ok. 1 passed' > /dev/null

test-clients: build-local ## Run the public suites of inspect-ai, langchain, sandboxio and mini-swe-agent (ONLY=langchain)
	@ONLY=$(ONLY) bash clients/suites/run.sh $(dir $(LOCAL)) $(TARGET)/clients

test-events: test-build $(NATS_PY) ## Test the subscription to events in Python, with nats-py
	$(TARGET)/debug/agentbox-local prepare
	@PYTHONPATH=$(NATS_PY) cargo test --workspace --test instance -- --include-ignored events::example_in_python \
	  | tee /dev/stderr | grep '^test result: ok. [1-9]' > /dev/null

# A complete installation is renamed, so that an incomplete one is never used.
$(NATS_PY):
	@mkdir -p $(CACHE)
	@rm -rf $(NATS_PY).part
	python3 -m pip install --quiet --disable-pip-version-check --no-deps --target $(NATS_PY).part nats-py==$(NATS_PY_VERSION)
	@mv $(NATS_PY).part $(NATS_PY)

# One test at a time: each has a browser and boxes. A filter that matches no test must not pass.
test-browser: test-build ## Test previews in Chromium, and 500 MiB through a port in each direction
	@bash deploy/local/packages.sh browser
	$(TARGET)/debug/agentbox-local prepare
	@AGENTBOX_TEST_TRANSFER_MIB=500 cargo test --workspace --test routes -- --include-ignored --test-threads 1 \
	  browser:: ports::traffic::large_bodies | tee /dev/stderr | grep '^test result: ok. [1-9]' > /dev/null

check: packages check-fast ## Check formatting, lints, documentation, the OpenAPI and AsyncAPI documents, licences and sources of dependencies
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	@$(MAKE) --no-print-directory lint-api
	@$(MAKE) --no-print-directory lint-events
	@$(MAKE) --no-print-directory deny

check-fast: ## Run the checks that compile nothing
	cargo fmt --all --check
	cargo fmt --manifest-path $(FUZZ_MANIFEST) --check
	@bash .ci/lint.sh
	@python3 loadtest/flamegraph.py --test

hooks: ## Let git run the checks that compile nothing before each commit
	git config core.hooksPath .githooks

lint-api: $(SPECTRAL) ## Check docs/openapi.json against the rules of .spectral.yaml
	@$(SPECTRAL) lint docs/openapi.json --ruleset .spectral.yaml --fail-severity warn --quiet

# Installed into a temporary directory and then renamed, so that an incomplete installation is never used.
$(SPECTRAL):
	@bash deploy/local/packages.sh lint
	@mkdir -p $(CACHE)
	@rm -rf $(CACHE)/spectral-$(SPECTRAL_VERSION).part
	npm install --prefix $(CACHE)/spectral-$(SPECTRAL_VERSION).part --no-audit --no-fund --ignore-scripts \
	  --loglevel error @stoplight/spectral-cli@$(SPECTRAL_VERSION)
	@rm -rf $(CACHE)/spectral-$(SPECTRAL_VERSION) && mv $(CACHE)/spectral-$(SPECTRAL_VERSION).part $(CACHE)/spectral-$(SPECTRAL_VERSION)

lint-events: $(ASYNCAPI) ## Validate docs/asyncapi.json with AsyncAPI's parser
	@node .ci/asyncapi.mjs $(ASYNCAPI)

# As above: a complete installation is renamed.
$(ASYNCAPI):
	@bash deploy/local/packages.sh lint
	@mkdir -p $(CACHE)
	@rm -rf $(CACHE)/asyncapi-parser-$(ASYNCAPI_VERSION).part
	npm install --prefix $(CACHE)/asyncapi-parser-$(ASYNCAPI_VERSION).part --no-audit --no-fund --ignore-scripts \
	  --loglevel error @asyncapi/parser@$(ASYNCAPI_VERSION)
	@rm -rf $(CACHE)/asyncapi-parser-$(ASYNCAPI_VERSION) && mv $(CACHE)/asyncapi-parser-$(ASYNCAPI_VERSION).part $(CACHE)/asyncapi-parser-$(ASYNCAPI_VERSION)

# Advisories need a database from the internet. If it is unreachable, a message reports that advisories
# are not checked, and the other checks run; with ADVISORIES=required this fails.
ADVISORIES ?= optional
deny: $(DENY)
	@if timeout 60 $(DENY) fetch db > /dev/null 2>&1; then \
	  $(DENY) --offline check; \
	elif [ "$(ADVISORIES)" = optional ]; then \
	  echo "the advisory database is unreachable: advisories are not checked"; \
	  $(DENY) check bans licenses sources; \
	else \
	  echo "the advisory database is unreachable" >&2; \
	  exit 1; \
	fi

$(DENY):
	cargo install cargo-deny --version $(DENY_VERSION) --locked --quiet --root $(CACHE)/cargo-deny-$(DENY_VERSION)

fmt: ## Format the code
	cargo fmt --all
	cargo fmt --manifest-path $(FUZZ_MANIFEST)

fuzz: build ## Send requests generated from the OpenAPI document, and check that it describes each response
	@bash loadtest/fuzz.sh $(dir $(RELEASE)) $(CACHE)

# Seconds for each target.
SECONDS ?= 600
fuzz-parsers: packages ## Fuzz the parsers of what users, boxes and peers send (SECONDS=600 for each target, ONLY=selectors for one)
	@bash deploy/local/packages.sh fuzz
	@bash loadtest/fuzz-parsers.sh $(CACHE) $(abspath $(TARGET))/fuzz $(SECONDS) $(ONLY)

# Scenarios by their names, such as ONLY="exec reads"; `agentbox-loadtest --help` lists them and the other
# variables.
ONLY ?=
LOADTEST = $(TARGET)/release/agentbox-loadtest
bench: build ## Measure everything in three turns, and compare with the last run, the runtime and NATS alone (ONLY="exec reads", TURNS=5, RUNTIME=kubernetes)
	RUNTIME=$(RUNTIME) REPLICAS=$(REPLICAS) $(LOADTEST) $(ONLY) --report $(TARGET)/bench.json --commit "$$(git describe --always --dirty)"

bench-compare: build ## Measure another commit and this tree by turns (REF=main, ONLY=exec, TURNS=5)
	@[ -n "$(REF)" ] || { echo "REF: must be a commit, for example REF=main" >&2; exit 1; }
	@RUNTIME=$(RUNTIME) REPLICAS=$(REPLICAS) bash loadtest/compare.sh $(REF) $(CACHE) $(abspath $(TARGET)) $(ONLY)

profile: build ## Draw flame graphs of the programs while a scenario runs, in target/profile (ONLY=exec)
	RUNTIME=$(RUNTIME) bash loadtest/profile.sh $(TARGET)/profile $(LOADTEST) $(or $(ONLY),exec) \
	  --report $(TARGET)/profile/bench.json --commit "$$(git describe --always --dirty)" --turns 1 --no-record

# The newest built program of any profile: stopping must not need a build.
define local
$$({ ls -t $(TARGET)/debug/agentbox-local $(RELEASE) 2> /dev/null || true; } | head -n 1 | grep . || { echo "agentbox-local is not built, so AgentBox is not running" >&2; exit 1; })
endef
