# Everything a newcomer needs, on a machine with Python 3.11+, make and the package registries.
#
#   make demo     set up, start everything, stream one answer of a real model, stop
#   make up       the same stack, until Ctrl-C
#   make test     lint, types, import contracts, all tests against a real Valkey
#   make check    lint, types, import contracts
#   make faults   every fault of docs/faults.md with its control, the long ones included
#   make hunt     2,000 seeds of the simulation (SEEDS=n, FIRST_SEED=n); `make test` runs 50
#   make kill-table   every fault on a real fleet under load, into docs/reliability.md
#   make soak     half an hour of load with a fault a minute: does anything grow?
#   make fuzz     HTTP and WebSocket doors under 500 new examples per test (FUZZ_EXAMPLES=n)
#   make conformance  the public suite of Durable Streams against /v1/streams (needs Node.js 20)
#   make bench    the relay benchmark; the others are `python -m bench.engine`, … (bench/README.md)
#   make install  .venv in the checkout

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install demo up test check faults hunt fuzz conformance bench kill-table soak clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt deploy/install.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) deploy/install.sh
	@touch $@

demo: $(STAMP)
	@$(BIN)/headrace demo

up: $(STAMP)
	@$(BIN)/headrace up

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	$(BIN)/pytest -n 2 --dist loadfile

faults: $(STAMP)
	$(BIN)/pytest -m "fault or control or faults"

hunt: $(STAMP)
	SEEDS=$${SEEDS:-2000} $(BIN)/pytest -q tests/simulation

fuzz: $(STAMP)
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-500} $(BIN)/pytest -q tests/gateway/test_fuzz_http.py \
		tests/gateway/test_fuzz_websocket.py

conformance: $(STAMP)
	@$(BIN)/python -m tests.conformance

bench: $(STAMP)
	$(BIN)/python -m bench.relay

kill-table: $(STAMP)
	$(BIN)/python -m bench.kills

soak: $(STAMP)
	$(BIN)/python -m bench.soak

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis
