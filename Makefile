# Everything a newcomer or CI does here is a target; `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-peers
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEED   ?= 0
JOBS   ?= 2
FLAVOUR ?= mini
OUT    ?= build/deploy
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-peers e2e lint format bench bench-imaging deploy-image docs docs-check lock clean

help: ## what there is to do
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the virtual environment from the lock file

$(STAMP): requirements/dev.lock setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fleetd needs Python 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## two simulated sites from racked to leased and back (SEED=n, KEEP=1)
	$(BIN)/fleetd demo --seed $(SEED)

test: $(STAMP) ## all tests that need nothing but Python (JOBS=2 at once)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not peers and not e2e"

$(PEERS)/.installed: requirements/peers.lock
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --require-hashes -r requirements/peers.lock
	@touch $@

test-peers: $(STAMP) $(PEERS)/.installed ## tests against programs nobody here wrote (packages: requirements/peers.apt)
	$(BIN)/python -m pytest -q -m "peers and not e2e"

e2e: ## two QEMU machines from registered to leased and back, nothing simulated (root, Debian)
	requirements/apt-install requirements/peers.apt requirements/e2e.apt
	@$(MAKE) --no-print-directory $(STAMP) $(PEERS)/.installed
	$(BIN)/python -m pytest -q -s -m e2e tests/e2e tests/deploy

lint: $(STAMP) ## ruff, mypy --strict, and the contracts of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff write what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure, and print ratios against the peers of the same run
	$(BIN)/python -m tests.bench

bench-imaging: $(STAMP) ## image serving against nginx, a crowd under admission, and the writer (packages: requirements/bench.apt)
	$(BIN)/python -m tests.bench imaging_serve imaging_writer

deploy-image: ## kernel, initrd, ISO and network loaders of the deploy environment (FLAVOUR=mini|product, OUT=build/deploy)
	$(PYTHON) -m deploy.build --flavour $(FLAVOUR) --out $(OUT)

docs: $(STAMP) ## write the reference pages that come from code
	$(BIN)/python docs/generate.py

docs-check: $(STAMP) ## fail when a generated page is not what the code says
	$(BIN)/python docs/generate.py --check

lock: ## resolve requirements/*.in into lock files with hashes (needs uv)
	for name in run dev peers; do uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate requirements/$$name.in -o requirements/$$name.lock; done

clean: ## remove what make made
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
