# Every target makes .venv, installs the pinned requirements and builds the extension first, if that
# is not done yet. `make help` lists them.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
TESTS_CPP := $(wildcard tests/csrc/*.cpp tests/csrc/*.h)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench gpu-check build clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

demo: build ## train a small Video Mobile-Former to recognise camera motion, on real footage
	$(PY) -m vmf.demo

test: build ## every test, on all cores
	$(PY) -m pytest -q -n auto

lint: $(VENV)/installed ## ruff, mypy and clang-format, all of them read-only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP) $(TESTS_CPP)

bench: build ## measure everything against PyTorch on this CPU, with tables and pictures; 1.5 hours (QUICK=1: 25 minutes)
	$(PY) -m bench.everything $(if $(QUICK),--quick)

gpu-check: build ## on a machine with CUDA: GPU tests, compute-sanitizer, benchmarks
	$(PY) -m bench.gpu_check

build: $(VENV)/built ## .venv with everything installed and the extension built

$(VENV)/installed: requirements.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vmf-kernels needs Python >= 3.10")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-demo.txt
	@touch $@

$(VENV)/built: $(VENV)/installed setup.py pyproject.toml $(CPP)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(PY) -m vmf_kernels.info --brief
	@touch $@

clean: ## removes .venv, the build, and what the demo made
	rm -rf $(VENV) build dist demo runs *.egg-info vmf_kernels/_C*.so vmf_kernels/libvmf_cuda.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
