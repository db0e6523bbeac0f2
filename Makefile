# Makes .venv, builds the kernels into it and runs what is asked for: make help lists it.
#
#   PYTHON=python3.12      the Python (3.10 or newer) that .venv is made from
#   TORCH="torch==2.13.0"  the torch to install, as pip's arguments: add the index of PyTorch's CPU-only builds, which are much smaller
#   PYTEST="-k cli"        arguments for pytest
#   DEMO, BENCH, TRAIN     arguments for the demo, for `fastconv bench` and for train-all (names of models, --threads N)

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST ?=
DEMO ?=
BENCH ?=
TRAIN ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
CORE := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f -name '[!.]*')
CPP := $(filter %.cpp %.h %.cu %.cuh,$(CORE))
PYTHON_FILES := fastconv tests $(wildcard benchmarks) setup.py

.PHONY: help demo train-all test check format sanitize avx512 bench clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    train LeNet-5 on real digits, then convert a PyTorch model and compare'
	@echo 'make train-all  train small models of every kind and write the table of docs/training.md (half an hour)'
	@echo 'make test    run all tests'
	@echo 'make check   check format, lint and types (make format repairs the format)'
	@echo 'make sanitize run the exact tests with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make avx512  run the AVX-512 kernels, made of AVX2 instructions, on a machine without AVX-512'
	@echo 'make bench   measure the kernels beside torch'
	@echo 'make gpu     build for the GPU of this machine, test and measure there, with what python3 has installed'
	@echo 'make clean   remove what make made (not runs/)'

demo: $(VENV)/all
	@$(BIN)/python -m fastconv.train.demo $(DEMO)

train-all: $(VENV)/all
	@$(BIN)/python -m fastconv.train.recipes --docs docs/training.md $(TRAIN)

test: $(VENV)/dev
	@$(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/dev
	@$(BIN)/ruff format --check --quiet $(PYTHON_FILES) || { echo 'format: run make format'; exit 1; }
	@$(BIN)/ruff check --quiet $(PYTHON_FILES)
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CPP) || { echo 'format: run make format'; exit 1; }

format: $(VENV)/dev
	@$(BIN)/ruff format --quiet $(PYTHON_FILES)
	@$(BIN)/ruff check --quiet --fix $(PYTHON_FILES)
	@$(BIN)/clang-format -i $(CPP)

sanitize avx512: $(VENV)/dev
	@PYTHON=$(BIN)/python tests/variant.sh $@ $(PYTEST)

bench: $(VENV)/all
	@$(BIN)/fastconv bench $(BENCH)

gpu:
	@$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info fastconv/_C.*.so .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
	find fastconv tests $(wildcard benchmarks) -name __pycache__ -prune -exec rm -rf {} +

# One file in .venv for each step that is done; each step needs the one before it, so `make -j` never runs two pips at once.
$(VENV)/python:
	@command -v $(PYTHON) >/dev/null || { echo 'Python was not found: install Python 3.10 or newer, or make PYTHON=/path/to/python' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): install one, or make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) lacks its venv module: install it (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	  echo '$(PYTHON) lacks its C headers: install them (on Debian and Ubuntu: apt install python3-dev)' >&2; exit 1; }
	@command -v $(CXX) >/dev/null || { echo 'The C++ compiler $(CXX) was not found: install g++ 11 or newer, or make CXX=...' >&2; exit 1; }
	@$(CXX) -dumpversion | awk -F. '$$1 < 11 { exit 1 }' || { \
	  echo "g++ 11 or newer is needed, $(CXX) is version $$($(CXX) -dumpversion): install a newer one, or make CXX=..." >&2; exit 1; }
	@echo 'Making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch: $(VENV)/python
	@echo 'Installing $(TORCH)'
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/core: $(VENV)/torch $(CORE)
	@echo 'Building and installing fastconv'
	@CXX='$(CXX)' $(PIP) install --editable .
	@touch $@

$(VENV)/all: $(VENV)/core
	@echo 'Installing what training, plots and benchmarks need'
	@$(PIP) install 'fastconv[all]'
	@touch $@

$(VENV)/dev: $(VENV)/all
	@echo 'Installing what development needs'
	@$(PIP) install 'fastconv[dev]'
	@touch $@
