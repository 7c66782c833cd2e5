# Every target sets up what it needs in .venv first. With uv where it is installed, else with python3 -m venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := postgres,mcp,local-model

.PHONY: demo test lint proto bench dev clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.runtime  ## walk the whole release workflow against real servers
	@$(BIN)/pointsman demo

dev: $(VENV)/.runtime  ## both servers with a sample app, until Ctrl-C
	@$(BIN)/pointsman dev

test: $(VENV)/.dev lint  ## everything that can run on this machine
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf breaking proto --against tests/wire.binpb

proto: $(VENV)/.dev  ## regenerate the committed stubs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py

bench: $(VENV)/.dev  ## speed and memory, as ratios against a peer in the same run
	$(BIN)/python -m tests.bench

$(VENV)/.runtime: pyproject.toml uv.lock
	@sh tests/setup.sh runtime $(PYTHON) $(VENV) "$(EXTRAS)"
	@touch $@

$(VENV)/.dev: pyproject.toml uv.lock
	@sh tests/setup.sh dev $(PYTHON) $(VENV) "$(EXTRAS)"
	@touch $(VENV)/.runtime $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
