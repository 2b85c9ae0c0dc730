# Two commands do everything: `make up` serves, `make test` checks. Both install what they need
# into .venv first, and reuse it afterwards. `make help` lists the rest.

SHELL := /bin/sh
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What Baton makes stays inside the checkout: the demo model, logs, the cluster token.
export BATON_HOME ?= $(CURDIR)/.baton
ifdef PIP_EXTRA_INDEX_URL
export PIP_EXTRA_INDEX_URL
endif

CHECK := set -x; $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
PYTEST := $(BIN)/python -m pytest
UNIT := $(PYTEST) tests/unit

ALONE := $(wildcard tests/integration/test_bench_*.py tests/integration/test_*_benchmark.py)
BESIDE := tests/cluster $(wildcard $(addprefix tests/integration/,test_sources_*.py test_store_[crt]*.py \
	test_profile_*.py test_registrar_*.py test_fake_*.py test_admin_commands.py test_render_*.py \
	test_doctor*.py test_worker_*.py test_controller*.py))
ROUTER := $(filter-out $(ALONE) $(BESIDE),$(wildcard tests/integration/test_*.py))

ARMS ?= cpu-standard cpu-disaggregated

.PHONY: help up bench calibrate test check unit sources integration e2e wheel compiled uncompiled format
.PHONY: install lock clean test-cluster rendered

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

up: install ## serve on this machine until Ctrl-C: make up [MODEL=folder-or-hub-id] [PROFILE=name] [ARGS=...]
	@exec $(BIN)/baton up $(if $(MODEL),--model '$(MODEL)') $(if $(PROFILE),--profile '$(PROFILE)') $(ARGS)

bench: install ## compare profiles on this machine, one core per worker: make bench [ARMS='...'] [ARGS=...]
	@exec $(BIN)/baton bench compare $(ARMS) --cpu-threads 1 --duration 30 $(ARGS)

calibrate: install ## check the measuring instrument itself against a server with known delays
	@exec $(BIN)/baton bench calibrate $(ARGS)

# Units are tested as they are written, the rest as it runs in production.
test: install uncompiled sources compiled integration wheel e2e ## run every check and test

check: install ## format, lint, types, layers
	@$(CHECK)

unit: install uncompiled ## unit tests alone, in two minutes
	@$(UNIT)

# The compiler needs one core meanwhile.
sources: install
	@$(BIN)/python requirements/compiled.py --ahead & compiler=$$!; \
	$(CHECK) && $(UNIT); status=$$?; wait $$compiler && exit $$status

# Tests of the router keep one core busy; beside them run those that time does not matter to. What
# measures runs alone.
integration: install ## real Redis, real HTTP, fake engines
	$(BIN)/python requirements/beside.py $(ROUTER) -- $(BESIDE)
	$(PYTEST) $(ALONE)

test-cluster: install ## hold a real API server to what Baton needs of one: make test-cluster KUBECONFIG=file
	@test -n "$(KUBECONFIG)" || { echo "make test-cluster needs KUBECONFIG=file of a cluster to test in" >&2; exit 2; }
	@KUBECONFIG='$(KUBECONFIG)' BATON_TEST_CLUSTER=1 $(PYTEST) tests/cluster

rendered: install ## render the built-in profiles anew into deploy/lws/rendered
	@for profile in profiles/builtin/*.yaml; do name=$$(basename $$profile .yaml); \
	$(BIN)/baton deploy render --profile $$name --out deploy/lws/rendered/$$name || exit; done

e2e: install ## real engines, real handoffs
	$(BIN)/python -m pytest tests/e2e

wheel: install ## build the wheel, install it elsewhere, try it
	$(BIN)/python -m pytest tests/packaging

compiled: install ## compile the router's hot modules: half the CPU per request; three minutes
	@$(BIN)/python requirements/compiled.py

uncompiled: install ## go back to the sources
	@$(BIN)/python requirements/compiled.py --remove

format: install ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: ## make .venv from requirements/cpu.lock
	@$(PYTHON) requirements/install.py

lock: install ## resolve the dependencies anew
	$(BIN)/python requirements/lock.py

clean: ## remove the environment and everything that Baton made
	rm -rf .venv .baton dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find baton kvtransfer router -name '*.cpython-*.so' -delete
	rm -f baton__mypyc*.so router/compiled.json
