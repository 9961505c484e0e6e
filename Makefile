# Every command works first on a fresh machine that has Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup run test test-all lint smoke bench notebook figures paper paper-smoke clean

setup: $(VENV)/.done

# neural-tangents goes in without its dependencies: it declares TensorFlow and tf2jax (2 GB) for an optional bridge
# that nothing here uses. What it needs beside them stands in requirements.txt.
$(VENV)/.done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "resjax needs Python >= 3.11: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps 'neural-tangents==0.6.5'
	@touch $@

run: setup
	$(BIN)/python -m resjax.main --config=configs/mul.py

test: setup
	$(BIN)/python -m pytest

test-all: setup  # with the slow ones, which add nine minutes
	$(BIN)/python -m pytest -m "slow or not slow"

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

bench: $(VENV)/.bench
	$(BIN)/python -m bench.training
	$(BIN)/python -m bench.conv
	$(BIN)/python -m bench.replicas
	$(BIN)/python -m bench.start
	$(BIN)/python -m bench.ntk
	$(BIN)/python -m bench.probes

$(VENV)/.bench: $(VENV)/.done
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

STUDIES := $(patsubst experiments/%/study.py,%,$(wildcard experiments/*/study.py))
smoke: $(STUDIES:%=smoke-%)
smoke-%: setup  # that they run to their end; unoptimised programs compile in three quarters of the time
	$(UNOPTIMISED) $(BIN)/python -m experiments.$* --smoke --workdir=$$(mktemp -d)
UNOPTIMISED := JAX_DISABLE_MOST_OPTIMIZATIONS=1
smoke-compare: UNOPTIMISED :=  # one as users run it

notebook: setup  # that it runs; `make test` looks at what stands in it
	$(UNOPTIMISED) RESJAX_NOTEBOOK_RUN=1 $(BIN)/python -m pytest --numprocesses=0 tests/test_notebook.py

figures: setup  # from results/ alone, without JAX
	$(BIN)/python -m experiments.paper.redraw

paper: setup
	$(BIN)/python -m experiments.paper

paper-smoke: setup
	$(BIN)/python -m experiments.paper --smoke --workdir=paper_smoke/runs

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
