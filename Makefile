# Each target sets up what it needs: the first use creates .venv and installs, later ones do not.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv/.peers

.PHONY: help train portfolio test compare conformance calibration cutest sensitivities memory peers scaling compiling lint format clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

train: $(STAMP) ## train the forecaster on real prices; options: make train ARGS="--epochs 2"
	$(BIN)/python -m models.train $(ARGS)

portfolio: $(STAMP) ## learn a portfolio through a constrained argmin; options: make portfolio ARGS="--seed 1"
	$(BIN)/python -m models.portfolio $(ARGS)

test: $(STAMP) ## run the whole suite
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

compare: $(STAMP) ## compare with PyTorch; a minute with ARGS="--quick"
	$(BIN)/python -m benchmarks.compare $(ARGS)

memory: $(STAMP) ## the memory of a gradient through a million unknowns
	$(BIN)/python -m benchmarks.memory $(ARGS)

conformance: $(STAMP) ## gradients that are known, asked of every library; ARGS="--write" keeps them
	$(BIN)/python -m benchmarks.conformance $(ARGS)

calibration: $(STAMP) ## hold the estimates of a report against true errors
	$(BIN)/python -m benchmarks.calibration $(ARGS)

cutest: $(STAMP) ## the 113 problems HS of CUTEst, by InteriorPoint, Ipopt and SLSQP
	$(BIN)/python -m benchmarks.cutest $(ARGS)

sensitivities: $(STAMP) ## derivatives at the problems HS of CUTEst against KKT algebra
	$(BIN)/python -m benchmarks.sensitivities $(ARGS)

peers: $(PEERS) ## compare with every peer; five minutes with ARGS="--quick"
	$(BIN)/python -m benchmarks.peers $(ARGS)

scaling: $(STAMP) ## time and memory by unknowns and lanes; quick with ARGS="--quick"
	$(BIN)/python -m benchmarks.scaling $(ARGS)

compiling: $(STAMP) ## what compiling takes, and two ways to have it sooner
	$(BIN)/python -m benchmarks.compiling $(ARGS)

lint: $(STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, runs and caches
	rm -rf .venv runs dist build .pytest_cache .ruff_cache .hypothesis .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "argmin_jax needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time) ..."
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

$(PEERS): $(STAMP)
	@echo "Installing the peers ..."
	$(BIN)/python -m pip install --quiet -e '.[peers]' -c constraints.txt
	@touch $@
