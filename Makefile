# Each target works on a fresh machine with Python 3.11 or later, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= demo
BACKEND ?= cpu
GPU ?= cuda
GPU_PYTHON ?= 3.12
RESULTS = benchmarks/results/$(shell date -u +%F)
ACCELERATORS := cuda rocm xpu xla
PROJECTS := pyproject.toml core/pyproject.toml server/pyproject.toml backends/torch/pyproject.toml backends/cpu/pyproject.toml \
	conformance/pyproject.toml $(ACCELERATORS:%=backends/%/pyproject.toml)
PACKAGES := -e core -e backends/torch -e backends/cpu -e server
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
NATIVE := $(wildcard backends/cpu/setup.py backends/cpu/octavo_cpu/native/*.cpp backends/cpu/octavo_cpu/native/*.h)

.PHONY: help setup serve test test-slow lint format bench conformance conformance-trial conformance-lists kernels-check kernels-trial \
	ipex-check spirv-check xla-check torch-xla-check gpu-check gpu-bundle gpu-dry-run clean

help:
	@echo "make serve      serve a real model on http://127.0.0.1:8000 (MODEL=demo)"
	@echo "make test       run the tests"
	@echo "make setup      install what serving needs into $(VENV)"
	@echo "make lint       ruff, mypy, import-linter"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make conformance  the whole suite on BACKEND=cpu, its report into conformance/reports"
	@echo "make conformance-trial  the suite on deliberately wrong backends, every case: writes docs/conformance-trial.md"
	@echo "make conformance-lists  the must-pass lists of the cases at hand, after a case was added"
	@echo "make kernels-check  the Triton kernels: compiled for every GPU, and all of conformance under the interpreter: an hour"
	@echo "make kernels-trial  conformance on kernels that are wrong on purpose, under the interpreter: writes docs/kernels-trial.md"
	@echo "make ipex-check  conformance of the xpu backend's IPEX kernel on its CPU platform: an environment of its own, 4 GB"
	@echo "make spirv-check  every kernel compiled to SPIR-V for Intel's GPUs, by a Triton of its own"
	@echo "make xla-check  the XLA backend: conformance on the host at every level, whole steps compiled for every TPU: an hour"
	@echo "make torch-xla-check  conformance of the flavour xla:torch on torch-xla's CPU platform: an environment of its own, 4 GB"
	@echo "make gpu-check  conformance and benchmarks of GPU=cuda, on a machine that has one; make gpu-bundle packs what it lacks"
	@echo "make gpu-dry-run  the same script on the CPU, with tiny shapes: that it runs to its end"
	@echo "make bench      throughput beside transformers, KV waste, latency and start-up, into benchmarks/results"

setup: $(VENV)/.serve

serve: $(VENV)/.serve
	$(BIN)/octavo serve $(MODEL)

# Triton either compiles or interprets, and jax has as many host devices as the first who asks: for as long as a process
# lives. So the tests of both have one of their own.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"
	TRITON_INTERPRET=1 $(PYTEST) -m "not slow" tests/kernels
	$(PYTEST) -m "not slow" tests/xla

kernels-check: $(VENV)/.dev
	$(BIN)/python -m octavo_torch.kernels.ahead_of_time --table docs/kernels.md
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels

kernels-trial: $(VENV)/.dev
	PYTHONPATH=tests/conformance $(BIN)/python -m kernel_trial.table

ipex-check: $(VENV)/.dev
	$(BIN)/python backends/xpu/ipex/check.py --report conformance/reports/ipex-cpu.json

spirv-check: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --pre --upgrade --target build/triton-xpu triton-xpu==3.3.0b1
	PYTHONPATH=build/triton-xpu $(BIN)/python backends/xpu/spirv/check.py

xla-check: $(VENV)/.dev
	$(BIN)/octavo conformance run --backend xla --option host_devices=2 --jobs 2 --patience 4 --report conformance/reports/xla.json
	$(PYTEST) tests/xla
	$(BIN)/python backends/xla/topologies --page docs/tpu.md

torch-xla-check: $(VENV)/.dev
	$(BIN)/python backends/xla/torch-xla/check.py --report conformance/reports/xla-torch.json

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy core/octavo server/octavo_server backends/torch/octavo_torch backends/cpu/octavo_cpu \
		conformance/octavo_conformance $(foreach name,$(ACCELERATORS),backends/$(name)/octavo_$(name)) \
		benchmarks/gpu
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance: $(VENV)/.dev
	$(BIN)/octavo conformance run --backend $(BACKEND) --jobs 2 --report conformance/reports/$(BACKEND).json

conformance-trial: $(VENV)/.dev
	$(BIN)/python tests/conformance/trial/table.py

conformance-lists: $(VENV)/.dev
	$(BIN)/python -m octavo_conformance.must_pass

bench: $(VENV)/.dev
	$(BIN)/octavo bench throughput demo --versus transformers --repeat 3 --output $(RESULTS)-throughput.json
	$(BIN)/octavo bench latency demo --output $(RESULTS)-latency.json
	$(BIN)/octavo bench waste demo --output $(RESULTS)-waste.json --plot $(RESULTS)-waste.png
	$(BIN)/octavo bench startup demo --output $(RESULTS)-startup.json

# On the machine with the card: what it lacks is taken from build/gpu-bundle, which `make gpu-bundle` fills beforehand.
gpu-check:
	$(PYTHON) -m benchmarks.gpu --backend $(GPU) --output $(RESULTS)-gpu-$(GPU).json

gpu-bundle: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu.bundle --python $(GPU_PYTHON)

gpu-dry-run: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu --dry-run

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One command for all packages: they need each other, and none is on an index yet.
$(VENV)/.serve: $(VENV)/bin/python constraints.txt $(PROJECTS) $(NATIVE)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES) $(ACCELERATORS:%=-e backends/%) \
		-e conformance -e ".[dev]"
	@touch $@
