# What people run. Everything happens in .venv; a stamp named after the contents of
# pyproject.toml and constraints.txt says that it is up to date, so nothing is done twice.

PYTHON ?= python3
VENV   ?= .venv
# Where to take torch from instead of pip's default index, e.g. PyTorch's own index of CPU builds.
TORCH_INDEX ?=
ARGS   ?=
# Two processes, of which each takes the next file: while one starts ranks the other computes.
BESIDE := -n 2 --dist loadfile

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STATE := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c 1-16)
BASE  := $(VENV)/.base-$(STATE)
ALL   := $(VENV)/.all-$(STATE)
export PATH := $(PATH):/usr/sbin:/sbin
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup setup-all horovod train test quick cluster-test full-test lint bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(BASE)  ## Make .venv with what training and the examples need
setup-all: $(ALL)  ## The same, with engines, trackers, peers for the benchmarks, and test tools

horovod: setup  ## Build Horovod for .venv's torch: minutes, once per machine (HOROVOD_WITH_MPI=1: with MPI)
	.ci/horovod $(BIN)/python

train: setup  ## Fine-tune MiniLM on BBC news on two processes
	$(BIN)/distrib train experiment=news strategy=ddp launcher.num_processes=2 $(ARGS)

test: lint  ## Lint, types and the test suite
	$(BIN)/python -m pytest $(BESIDE) --no-loadscope-reorder -m "not full and not cluster" $(ARGS)

quick: setup-all  ## The tests that take under a second, and a short run of each strategy
	$(BIN)/python -m pytest $(BESIDE) -m "not slow and not full and not cluster" $(ARGS)

cluster-test: setup-all  ## The tests on real SLURM, sshd and Open MPI, on hosts made of network namespaces; needs root
	@for program in sshd mpirun slurmctld slurmd munged ip nsenter; do command -v $$program >/dev/null || \
	  { echo "$$program is missing: .ci/cluster and .ci/slurm install what these tests need"; exit 1; }; done
	$(BIN)/python -m pytest -m cluster $(ARGS)

full-test: lint  ## Every test, those that take minutes or need network namespaces too
	$(BIN)/python -m pytest $(ARGS)

lint: setup-all  ## Ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup-all  ## Measure overhead, start-up and memory; rewrite benchmarks/README.md
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.checkpoint_memory
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.paired
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.traffic
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.state_memory
	$(BIN)/python -m benchmarks.building_memory
	$(BIN)/python -m benchmarks.balance
	$(BIN)/python -m benchmarks.table

clean:  ## Remove the environment and what builds and tools leave behind (not runs/)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "distrib needs Python 3.10 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: asked for as a dependency, pip may take a later and larger build. From an
# index of its own it comes alone, because that may hold nothing else: what it needs comes with the rest.
$(BASE): $(VENV)/bin/python
	$(PIP) -c constraints.txt torch $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))
	$(PIP) -c constraints.txt -e '.[examples]'
	@rm -f $(VENV)/.base-* && touch $@

$(ALL): $(BASE)
	$(PIP) -c constraints.txt -e '.[examples,deepspeed,tracking,bench,sweep,dev]'
	.ci/horovod $(BIN)/python
	$(if $(CHROMIUM),,-@.ci/chromium)
	@command -v sshd >/dev/null && command -v mpirun >/dev/null || .ci/cluster || true
	@command -v slurmctld >/dev/null || .ci/slurm || true
	@rm -f $(VENV)/.all-* && touch $@
