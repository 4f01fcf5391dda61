# Thin verbs over cargo. `make test` is what CI runs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
CLUSTER_PY := python3 tests/cluster/cluster.py

.PHONY: help test lint fmt build unit manifests chart cluster cluster-up cluster-down cluster-images e2e e2eprocesses e2ecluster clients acceptance bench bench-operator soak attack fuzz fuzz-coverage mutants

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/disagg

# One profile for everything that is tested, and for clippy too: proc macros and build scripts are then built once.
# Always the whole workspace and always with its tests, so that cargo resolves the same features every time and builds
# each crate once.
CARGO_CI := --profile ci --locked --workspace

DENY_VERSION := 0.20.2
DENY_ROOT := $(CACHE)/tools/cargo-deny-$(DENY_VERSION)
DENY := $(DENY_ROOT)/bin/cargo-deny

# Clients that users have, each with its own pinned packages. A change of the pins makes a new venv.
CLIENTS_VENV = $(CACHE)/tools/clients-$(shell sha256sum tests/clients/requirements.txt | cut -c1-12)
AIPERF_VENV = $(CACHE)/tools/aiperf-$(shell sha256sum tests/clients/requirements-aiperf.txt | cut -c1-12)

# NVRTC compiles the CUDA kernels without a GPU; the folder of its library is what the loader searches.
NVRTC_VENV = $(CACHE)/tools/nvrtc-$(shell sha256sum tests/nvrtc/requirements.txt | cut -c1-12)
NVRTC_LIBS = $(NVRTC_VENV)/libs

# $(call venv,FOLDER,REQUIREMENTS): makes it unless it is there; what is there is complete.
define venv
test -x $(1)/bin/python || { rm -rf $(1).tmp && python3 -m venv $(1).tmp \
  && $(1).tmp/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(2) \
  && rm -rf $(1) && mv $(1).tmp $(1); }
endef

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 22

test: ## everything: lint, build, unit, cluster, e2e, clients; each timed against its budget
	@python3 tests/stages.py

lint: $(DENY) ## rustfmt, clippy and cargo-deny (licences, bans, sources); changes nothing
	cargo fmt --all --check
	cargo clippy $(CARGO_CI) --all-targets -- -D warnings
	$(DENY) --locked check bans licenses sources

fmt: ## format the code
	cargo fmt --all

build: ## build the executables and all tests
	cargo build $(CARGO_CI) --all-targets

unit: $(NVRTC_LIBS) ## unit and property tests, the CUDA kernels through their compiler, and the tests of our scripts
	DISAGG_REQUIRE_NVRTC=1 LD_LIBRARY_PATH="$(NVRTC_LIBS):$${LD_LIBRARY_PATH:-}" cargo test $(CARGO_CI) --exclude disagg-e2e
	python3 -m unittest discover --start-directory tests --pattern 'test_*.py'
	python3 -m unittest discover --start-directory tests/mutants --pattern 'test_*.py'
	python3 -m unittest discover --start-directory tests/cluster --pattern 'test_*.py'
	python3 -m unittest discover --start-directory tests/kind

manifests: ## write the resource definition, its copies, the kustomize base and the chart's snapshots
	cargo run $(CARGO_CI) --bin crdgen > crds/disaggdeployments.disagg.dev.yaml.tmp
	mv crds/disaggdeployments.disagg.dev.yaml.tmp crds/disaggdeployments.disagg.dev.yaml
	UPDATE_SNAPSHOTS=1 python3 -m unittest discover --start-directory tests/chart

chart: ## lint the Helm chart, compare what it renders; builds helm from source once (Go)
	python3 -m unittest discover --start-directory tests/chart

# Checked with the flags of the build, so that Kubernetes is compiled once; and without main.go, whose check would read
# all of Kubernetes.
GO_CHECK := CGO_ENABLED=0 GOFLAGS="-mod=readonly -trimpath" go -C tests/cluster

cluster: ## build the executables of the test cluster (Kubernetes, etcd) and helm; once, into the cache
	$(CLUSTER_PY) build
	test -z "$$(gofmt -l tests/cluster | tee -a /dev/stderr)"
	$(GO_CHECK) vet ./dns ./pod
	$(GO_CHECK) test -vet=off ./dns ./pod

cluster-up: ## start a real Kubernetes of one node on this machine (root); needs no Docker
	$(CLUSTER_PY) up

cluster-down: ## end it and remove all that it left
	$(CLUSTER_PY) down

cluster-images: ## give it the product's images from target/ci; needs `make build` before
	$(CLUSTER_PY) load $$($(CLUSTER_PY) images)

# Where the cluster tests run: local starts a node on this machine, kind needs Docker, external needs KUBECONFIG.
CLUSTER ?= local
# Part of a test's name, for some of the cluster tests.
CLUSTER_TESTS ?=

e2e: e2eprocesses e2ecluster ## end-to-end tests: real processes and sockets, then a real Kubernetes (CLUSTER=local|kind|external)

e2eprocesses: ## the end-to-end tests that need no cluster, and the short form of the attacks
	cargo build $(CARGO_CI) --bins --test e2e --test attack
	cargo test $(CARGO_CI) --test e2e
	RUST_LOG=warn cargo test $(CARGO_CI) --test attack -- --show-output

# A run of some tests, or one that fails, must not leave an operator behind in a cluster that stays up. Only on our own.
UNINSTALL = $(if $(filter local,$(CLUSTER)),trap "helm uninstall disagg --namespace disagg-system --ignore-not-found --wait; kubectl delete namespace disagg-system --ignore-not-found" EXIT;)

e2ecluster: ## the end-to-end tests on Kubernetes (CLUSTER=local|kind|external)
	cargo build $(CARGO_CI) --bins --test operator --test cluster --test rights
	$(CLUSTER_PY) images
	$(CLUSTER_PY) $(if $(filter local,$(CLUSTER)),run,tools) -- env DISAGG_E2E_CLUSTER=$(CLUSTER) bash -euc '\
	  $(UNINSTALL) \
	  cargo test $(CARGO_CI) --test operator -- --show-output --test-threads 4 $(CLUSTER_TESTS); \
	  cargo test $(CARGO_CI) --test cluster -- --show-output --test-threads 4 $(CLUSTER_TESTS); \
	  cargo test $(CARGO_CI) --test rights -- --show-output $(CLUSTER_TESTS)'

clients: ## the openai Python package against `disagg up`; needs `make build` before
	$(call venv,$(CLIENTS_VENV),tests/clients/requirements.txt)
	$(CLIENTS_VENV)/bin/python tests/clients/openai_client.py

acceptance: ## aiperf with the original's load against `disagg up`; REQUESTS=40 WARMUP=10 ISL=3000 OSL=150 CONCURRENCY=10
	cargo build $(CARGO_CI) --bins --test e2e
	$(call venv,$(AIPERF_VENV),tests/clients/requirements-aiperf.txt)
	$(AIPERF_VENV)/bin/python tests/clients/aiperf_load.py

bench: ## serve a small model with a release build and measure: local against remote prefill
	cargo build --release --locked
	DISAGG_BIN=$(CURDIR)/target/release/disagg cargo bench $(CARGO_CI) --bench serving

WAVES ?= 30
WAVE_REQUESTS ?= 5000
soak: ## waves of requests with cancels against simulated workers, longer than in `make e2e`; WAVES=30 WAVE_REQUESTS=5000
	cargo build $(CARGO_CI) --bins --test e2e
	DISAGG_WAVES=$(WAVES) DISAGG_WAVE_REQUESTS=$(WAVE_REQUESTS) RUST_LOG=error \
	  cargo test $(CARGO_CI) --test e2e -- waves --nocapture

ATTACK ?=
attack: ## attacks on a deployment over loopback beside an honest client, the long form; some minutes; ATTACK=part of a name
	cargo build $(CARGO_CI) --bins --test attack
	DISAGG_ATTACK_LONG=1 DISAGG_ATTACK=$(ATTACK) RUST_LOG=error cargo test $(CARGO_CI) --test attack -- --nocapture

bench-operator: ## the operator with 50 and 200 resources on a cluster: time, requests, memory (CLUSTER=local|kind|external)
	cargo build $(CARGO_CI) --bins --bench operator
	$(CLUSTER_PY) $(if $(filter local,$(CLUSTER)),run,tools) -- env DISAGG_E2E_CLUSTER=$(CLUSTER) \
	  DISAGG_BIN=$(CURDIR)/target/ci/disagg cargo bench $(CARGO_CI) --bench operator

# Every run of a property test draws new inputs; a failure prints the smallest input that it found.
FUZZ_INPUTS ?= 200000
FUZZ_ROUNDS ?= 20
FUZZ_CASES ?= 20000
fuzz: ## random inputs: what reads bytes from outside (FUZZ_INPUTS a corpus file), then the property tests (FUZZ_ROUNDS)
	DISAGG_FUZZ_INPUTS=$(FUZZ_INPUTS) cargo test $(CARGO_CI) --test inputs
	for round in $$(seq $(FUZZ_ROUNDS)); do \
	  echo "round $$round of $(FUZZ_ROUNDS)"; \
	  PROPTEST_CASES=$(FUZZ_CASES) cargo test $(CARGO_CI) --exclude disagg-e2e --lib --quiet || exit 1; \
	done

# What cargo-fuzz asks of rustc; these flags are stable. `--target` keeps build scripts and proc macros out of it.
# One codegen unit, since libFuzzer's tables are put together by the linker.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= http_body custom_resource settings model_config tokenizer chat_template protobuf
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FOLDER := $(CURDIR)/target/fuzz
FUZZ_FLAGS := --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
fuzz-coverage: ## the same inputs led by coverage (libFuzzer), FUZZ_SECONDS a target; compiles everything anew, once
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --profile ci --locked --package disagg-fuzz --features libfuzzer \
	  --bin coverage --target $(FUZZ_HOST) --target-dir $(FUZZ_FOLDER)
	for target in $(FUZZ_TARGETS); do \
	  echo "== $$target"; \
	  mkdir -p $(FUZZ_FOLDER)/corpus/$$target; \
	  DISAGG_FUZZ_TARGET=$$target $(FUZZ_FOLDER)/$(FUZZ_HOST)/ci/coverage -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
	    -rss_limit_mb=2048 -verbosity=0 -artifact_prefix=$(FUZZ_FOLDER)/$$target- -print_final_stats=1 \
	    $(FUZZ_FOLDER)/corpus/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

mutants: ## break the code in the listed ways and see that a test notices each
	python3 tests/mutants/run.py

$(NVRTC_LIBS):
	$(call venv,$(NVRTC_VENV),tests/nvrtc/requirements.txt)
	mkdir -p $@.tmp
	ln -sf $(NVRTC_VENV)/lib/python3*/site-packages/nvidia/cu13/lib/lib* $@.tmp/
	ln -sf libnvrtc.so.13 $@.tmp/libnvrtc.so
	mv $@.tmp $@

# Built without optimisation (it runs for two seconds) and without the parts that need the network.
$(DENY):
	@echo 'installing cargo-deny $(DENY_VERSION) into $(DENY_ROOT) (once, about a minute)'
	CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deny --version $(DENY_VERSION) --locked --debug \
	  --no-default-features --quiet --no-track --root $(DENY_ROOT)
