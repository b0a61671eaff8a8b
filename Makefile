# Commands for developers and for a first try; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The programs that run here take no modules and no settings of Python from the user's environment; PYTHON chooses one.
unexport $(filter-out PYTHON,$(filter PYTHON%,$(.VARIABLES)))

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The environment without developers' tools, so that a first try starts sooner, and with all that a deployment needs.
RUNS := $(VENV)/.runs
DEPLOYS := $(VENV)/.deploys
SETUP := scripts/setup scripts/pip pyproject.toml $(wildcard requirements/*.txt)
TOPIC ?= news
PORT ?= 8000
UPGRADE ?= --upgrade
SCHEDULES ?= 1000
# All targets of the fuzzer.
TARGET ?=
# Pythons and machines of zipapps; those of this machine.
TARGETS ?=
SECONDS ?= 600
# Number of processes that share the tests, as tests/conftest.py divides them.
WORKERS ?= 3
# In the order of their addresses in ansible/inventory/lab/hosts.yml.
LAB_HOSTS := consumer1 consumer2 consumer3 producer1 producer2 demo1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: setup
setup: $(READY) ## Make the virtual environment .venv with everything in it
	@echo "$(VENV) has $$($(BIN)/python -I --version); to have another Python, remove it and set PYTHON."

$(READY): $(SETUP)
	scripts/setup $(VENV) dev
	touch $(RUNS) $(DEPLOYS) $@

.PHONY: setup-deploy
setup-deploy: $(DEPLOYS) ## Make .venv with all that a control node needs to deploy, and no developers' tools

$(DEPLOYS): $(SETUP)
	scripts/setup $(VENV) deploy
	touch $(RUNS) $@

$(RUNS): $(SETUP)
	scripts/setup $(VENV) nodes
	touch $@

.PHONY: demo
demo: $(RUNS) ## Start a cluster on loopback, verify it, open the demo terminal (TOPIC=news)
	@$(BIN)/wsqueue local --port 0 --demo $(TOPIC)

.PHONY: check
check: $(READY) ## Run the linters and the unit tests side by side, in four minutes: no sockets, no root
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint unit

.PHONY: unit
unit: $(READY) ## Run the unit tests
	$(BIN)/pytest --quiet --numprocesses 2 tests/unit

.PHONY: test-pythons
test-pythons: $(READY) ## Run the unit tests on Python 3.11 to 3.14, those of Debian and Ubuntu (as root)
	@$(BIN)/python -I scripts/test-pythons

.PHONY: test
test: $(READY) ## Run the linters and all tests, with branch coverage
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(WORKERS) --hypothesis-profile 'fewer examples'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: test-faults
test-faults: $(READY) ## Run 1,000 random schedules of faults, in about an hour on two cores (SCHEDULES=1000): docs/faults.md
	$(BIN)/python -m tests.faults --schedules $(SCHEDULES)

.PHONY: fuzz
fuzz: $(READY) ## Fuzz all that reads bytes from peers and disks, ten minutes each (TARGET=session SECONDS=600)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(TARGET)

.PHONY: bench
bench: $(READY) ## Compare wsqueue with NATS, Redis and plain servers, in 35 minutes: docs/performance.md
	$(BIN)/python -m bench.compare

.PHONY: docs
docs: $(READY) ## Build the documentation as a site in site/
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs site
	@echo "The documentation is in site/index.html; make docs-serve shows it."

.PHONY: docs-serve
docs-serve: docs ## Build the documentation and serve it on loopback (PORT=8000)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site $(PORT)

.PHONY: zipapp
zipapp: $(DEPLOYS) ## Build dist/wsqueue-<version>-<target>.pyz, which the roles deploy, with SBOM and SHA-256 (TARGETS="cp313-aarch64")
	@$(BIN)/python -I scripts/zipapp $(TARGETS)

.PHONY: collection
collection: $(DEPLOYS) ## Build dist/wsqueue-wsqueue-<version>.tar.gz, the roles and playbooks as an Ansible collection
	@scripts/collection $(VENV)

.PHONY: deb
deb: $(DEPLOYS) ## Build dist/wsqueue_<version>+py311_amd64.deb, the package of Debian 12 (TARGETS="cp313-x86_64": 13): docs/packages.md
	@zipapps=$$($(BIN)/python -I scripts/zipapp $(TARGETS)); \
	for zipapp in $$zipapps; do $(BIN)/python -I scripts/deb $$zipapp; done

.PHONY: npm
npm: $(DEPLOYS) ## Build dist/wsqueue-<version>.tgz, the npm package of the JavaScript client: docs/packages.md
	@$(BIN)/python -I scripts/npm-package

.PHONY: release
release: $(READY) ## Build all packages of the last commit in dist/release-<version>, and check them (as root for .deb): docs/packages.md
	@$(BIN)/python -I scripts/release $(TARGETS)

.PHONY: lint
lint: lint-code lint-roles ## Run all linters

.PHONY: lint-code
lint-code: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" shellcheck $$(grep -lE -d skip "^#!/bin/(ba)?sh" scripts/* .ci/* packaging/deb/* ansible/roles/*/files/*.sh)
	$(BIN)/python scripts/check-role-variables

# This takes as long as all others.
.PHONY: lint-roles
lint-roles: $(READY)
	$(BIN)/yamllint --strict .yamllint .ansible-lint site.yml ansible molecule
	PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint

.PHONY: format
format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lock
lock: $(READY) ## Pin the newest versions of all dependencies, with hashes, in requirements/ (UPGRADE= keeps others)
	scripts/lock $(BIN)/uv $(UPGRADE)

.PHONY: audit
audit: $(READY) ## Look for known vulnerabilities in all dependencies
	@$(BIN)/python -I scripts/audit

.PHONY: lab
lab: $(DEPLOYS) ## Boot six test hosts with real systemd on this machine, for ansible/inventory/lab (as root)
	scripts/lab up $(LAB_HOSTS)

.PHONY: lab-down
lab-down: ## End the test hosts
	scripts/lab down

.PHONY: clean
clean: lab-down ## Remove all files that the other targets made
	rm -rf $(VENV) .artifacts .fuzz .lab dist site .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
