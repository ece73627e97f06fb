# Capsule. `make help` lists the targets; README.md says what they are for.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
GO ?= go
COMMIT_UNIX := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
LDFLAGS := -s -w -X capsule/internal/version.Version=$(VERSION) -X capsule/internal/version.BuildUnix=$(COMMIT_UNIX)
# Packages that `make deps` installs on Debian 12+ and Ubuntu 24.04+.
PACKAGES := qemu-system-x86 qemu-utils dosfstools e2fsprogs erofs-utils ca-certificates curl openssl git gcc libc6-dev debian-archive-keyring swtpm
CORE := ./internal/workload ./internal/store ./internal/reconcile ./internal/network ./internal/image

-include image/image.mk

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

deps: ## install the packages that building and testing need
	@missing=""; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

build: ## build capsulectl for this machine to bin/
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/capsulectl

example: ## build the example program and its image to build/example/
	CGO_ENABLED=0 GOOS=linux $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o build/example/web ./examples/web
	$(GO) run ./examples/pack -name web:1 -o build/example/web.tar build/example/web

demo: deps image build example ## build all, boot a capsule here, run a container on it
	$(GO) run ./test/demo up

demo-down: build ## remove what demo left running
	$(GO) run ./test/demo down

test: deps image build example ## all tests; CI runs exactly this
	$(GO) run ./test/all

powercut: deps image ## cut the power everywhere in a recording; writes docs/reliability.md
	$(GO) build -o bin/vmexec ./test/vmexec
	CGO_ENABLED=0 $(GO) test -count=1 -v -exec '$(CURDIR)/bin/vmexec --' ./test/powercut/metadata
	CAPSULE_POWERCUT_MINUTES=$(or $(MINUTES),60) CAPSULE_POWERCUT_SEED=$(or $(SEED),1) CAPSULE_POWERCUT_REPORT=$(CURDIR)/docs/reliability.md \
	  $(GO) test -count=1 -timeout=24h -tags=machine -v ./test/powercut

torture: deps image ## faults for MINUTES=60 while workloads count, to docs/reliability.md; as root; SEED=, FAULTS=a,b
	CAPSULE_TORTURE_MINUTES=$(or $(MINUTES),60) CAPSULE_TORTURE_SEED=$(or $(SEED),1) CAPSULE_TORTURE_FAULTS='$(FAULTS)' CAPSULE_TORTURE_MICROVM=$(MICROVM) \
	  CAPSULE_TORTURE_KEEP=$(if $(KEEP),$(abspath $(KEEP))) CAPSULE_TORTURE_REPORT=$(CURDIR)/docs/reliability.md \
	  $(GO) test -count=1 -timeout=24h -tags=machine -v ./test/torture

# Their SEED is a number, and no operator's key for the image.
powercut torture: IMAGE_FLAGS := $(if $(UPDATE),-update) $(if $(RELEASE),-release)

unit: ## the quick tests only, with the race detector
	$(GO) test -race ./...

lint: ## static checks of the code and of the API
	$(GO) tool -modfile=tools/golangci-lint.mod golangci-lint run ./...
	$(GO) tool -modfile=tools/buf.mod buf lint
	@base=$$(git rev-parse -q --verify origin/main || git rev-parse -q --verify main || git rev-parse HEAD); \
	if [ -n "$$(git ls-tree -r --name-only $$base -- buf.yaml)" ]; then \
	  $(GO) tool -modfile=tools/buf.mod buf breaking --against ".git#ref=$$base"; \
	else echo "no API at $$base to compare with"; fi
	GOOS=darwin $(GO) vet ./cmd/capsulectl
	GOOS=windows $(GO) vet ./cmd/capsulectl

vulncheck: ## known vulnerabilities in what is linked; needs vuln.go.dev
	$(GO) tool -modfile=tools/govulncheck.mod govulncheck ./...

generate: ## Go of the .proto files, docs/cli.md
	$(GO) tool -modfile=tools/buf.mod buf generate
	$(GO) generate ./...

bench: deps image build example ## measure, and print docs/benchmarks.md's figures
	$(GO) run ./test/bench

clean: ## remove what was built
	rm -rf bin build

.PHONY: help deps build example demo demo-down test powercut torture unit lint vulncheck generate bench clean
