# The project's commands. `make up` and `make test` need a Debian 12 machine with Rust, Go and
# apt, as root; they install, build and start all else themselves.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Builds, images and other people's sources are kept here, named by their content.
export MEGACLUSTER_CACHE ?= $(HOME)/.cache/megacluster
export CARGO_TARGET_DIR ?= $(MEGACLUSTER_CACHE)/target

.PHONY: help
help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: up
up: ## From nothing to a working MegaCluster with 500 nodes and 1,000 pods.
	@tests/e2e/up

.PHONY: down
down: ## Stops what `make up` started and leaves nothing behind.
	@tests/e2e/down

.PHONY: test
test: ## Everything: lint, unit tests, Kubernetes' storage suite, the journey on a real cluster.
	@tests/run

.PHONY: soak
soak: ## An hour of kills, lost power and broken messages for the store, then every failover 20 times.
	@tests/soak

.PHONY: quick
quick: ## Lint and unit tests alone.
	@tests/run lint unit

.PHONY: bench
bench: ## Ours beside etcd: throughput, latency, CPU, memory. `bench/run` says what it takes.
	@bench/run

.PHONY: lint
lint: ## Formats, lints, licences and scripts.
	@tests/run lint

.PHONY: fmt
fmt: ## Formats all code.
	cargo fmt --all
	gofmt -w $$(git ls-files '*.go')

.PHONY: crds
crds: ## Writes config/crd and the protobuf code anew from their sources.
	tests/generate

.PHONY: images
images: ## Builds and packs the images that `make up` runs.
	@tests/e2e/images

