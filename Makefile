# `make demo` and `make test` are all that a fresh clone needs; both set up .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint engines bench clean
.DEFAULT_GOAL := help

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
	  { echo "Python 3.11.4 or later is needed; $(PYTHON) is not: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY) ## run the main job, start to end (BACKEND=local-docker IMAGE=…: in containers)
	$(BIN)/worker-manager demo $(if $(BACKEND),--backend $(BACKEND)) $(if $(IMAGE),--image $(IMAGE))

test: $(READY) ## run every test; those of engines that are not installed are left out, by name
	$(BIN)/python -m pytest

lint: $(READY) ## style, types, who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

engines: ## install the engines that tests talk to (Debian, as root): PostgreSQL, Docker, Slurm, CodaLab
	tests/engines/install

bench: $(READY) ## measure what docs/performance.md claims
	$(BIN)/python -m benchmarks

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
