PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench bench-attribution clean config

$(READY): pyproject.toml constraints.txt src/gpumon/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## a server and simulated GPU nodes on this machine; Ctrl+C stops all
	$(BIN)/gpumon demo

lint: $(READY)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## everything that must hold
	$(BIN)/pytest

bench: $(READY)  ## what agent and server cost; takes five minutes
	$(BIN)/python -m bench.nvml_calls
	$(BIN)/python -m bench.agent
	$(BIN)/python -m bench.agent_pods
	$(BIN)/python -m bench.ingest

bench-attribution: $(READY)  ## whose use it was, against scenes of known truth; writes README's table; two minutes
	$(BIN)/python -m bench.attribution --write-readme

config: $(READY)  ## writes config/*.ini anew from the settings classes
	$(BIN)/gpumon config server > config/server_config.ini
	$(BIN)/gpumon config agent > config/client_config.ini

clean:
	rm -rf $(VENV) build dist src/*.egg-info
