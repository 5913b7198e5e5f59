# make test | test-all | races | mutants | bench | docs | cuda | instructions | gpu | lint | sanitize |
#      wheels | matrix | arm | format | clean. Each sets itself up on a fresh machine.
#
# Environment: the active one (VIRTUAL_ENV), else a $(PYTHON) that has torch and may be installed
# into, else .venv, made here; from a $(PYTHON) that has torch but belongs to the system, .venv
# shares that torch. tools/dev_env.py fills it with the groups of requirements-dev.txt that are asked
# for, $(call need,GROUP ...), and builds, $(call build,GROUP ...).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
WHEELS_ARGS ?=
MATRIX_ARGS ?=
PYTEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV_PY := $(CURDIR)/.venv/bin/python
PROBE := import importlib.util, os, sys, sysconfig; \
  has_torch = importlib.util.find_spec("torch") is not None; \
  managed = os.path.exists(sysconfig.get_path("stdlib") + "/EXTERNALLY-MANAGED"); \
  print("" if not has_torch else "shared" if managed else sys.executable)

ifneq ($(and $(VIRTUAL_ENV),$(wildcard $(VIRTUAL_ENV)/bin/python)),)
PY := $(VIRTUAL_ENV)/bin/python
else ifneq ($(wildcard $(VENV_PY)),)
PY := $(VENV_PY)
else
FOUND := $(shell $(PYTHON) -c '$(PROBE)')
PY := $(if $(filter-out shared,$(FOUND)),$(FOUND),$(VENV_PY))
VENV_FLAGS := $(if $(filter shared,$(FOUND)),--system-site-packages)
endif
export PATH := $(dir $(PY)):$(PATH)

PYTEST := $(PY) -m pytest -n $(WORKERS)

need = @$(PY) tools/dev_env.py $(1)
build = @$(PY) tools/dev_env.py --build $(1)
TEST_GROUPS := torch build bench test

.PHONY: help env cuda-on-host cuda-on-host-races test test-all races mutants bench docs cuda instructions gpu lint format sanitize wheels matrix arm clean

help:
	@sed -n '1,2s/^# *//p' Makefile

NO_VENV := $(PYTHON) cannot make an environment: install Python 3.10 or later with its venv module \
  (Debian, Ubuntu: apt install python3-venv), or name one with PYTHON
IS_OLD := import sys; sys.exit(sys.version_info < (3, 10))
$(VENV_PY):
	@$(PYTHON) -c '$(IS_OLD)' 2> /dev/null && \
	$(PYTHON) -m venv $(VENV_FLAGS) $(CURDIR)/.venv > /dev/null 2>&1 || \
	  { rm -rf $(CURDIR)/.venv; echo "$(NO_VENV)" >&2; exit 1; }

env: $(PY)
	$(call build,$(TEST_GROUPS))
	@$(PY) -m se_kernels

# The CUDA backend for the tests of a machine without a GPU: no nvcc, and no header of CUDA.
CUDA_ON_HOST := $(CURDIR)/build/cuda_on_host
build_cuda_on_host = \
  cmake -S tests/cuda_on_host -B $(1) -G Ninja -DPython_EXECUTABLE=$(PY) \
    -Dpybind11_DIR="$$($(PY) -m pybind11 --cmakedir)" $(2) $${CMAKE_ARGS:-} > /dev/null; \
  cmake --build $(1)

cuda-on-host: env
	@$(call build_cuda_on_host,$(CUDA_ON_HOST))

test: env cuda-on-host
	$(PYTEST) $(PYTEST_ARGS)

# Every case in place of all pairs of parameters. Hours.
test-all: export SE_KERNELS_EVERY_CASE := 1
test-all: test

# The CUDA backend on the host, built to find races (GCC): its tests, and what finds them. Then, left
# out one at a time, what keeps them away. Left to `make test`: whether the bits are the same in every
# order, which a race changes and one run shows here, and the paper's full sizes.
RACES := $(CUDA_ON_HOST)_races
RACES_TESTS := tests/gpu/test_cuda_races.py tests/gpu/test_cuda_traffic.py tests/gpu/test_cuda.py \
  tests/gpu/test_cuda_norm.py tests/gpu/test_cuda_solve.py

cuda-on-host-races: env
	@$(call build_cuda_on_host,$(RACES),-DSE_KERNELS_RACES=ON)

races: cuda-on-host-races
	SE_KERNELS_CUDA_ON_HOST=$(RACES) $(PYTEST) -k "not same_bits and not its_own_size" \
	  $(PYTEST_ARGS) $(RACES_TESTS)

mutants: cuda-on-host-races
	PYTHONPATH=tests/ops:tests/gpu SE_KERNELS_CUDA_ON_HOST=$(RACES) $(PY) tests/mutants.py $(ORDERS)

bench: $(PY)
	$(call build,torch build bench)
	@$(PY) -m se_kernels check
	@$(PY) -m benchmarks quick --plot build/bench.png

# The site, into build/site; a broken link or an undocumented name is an error.
docs: $(PY)
	$(call need,bench docs)
	@$(PY) tools/figures.py
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "the site is build/site/index.html"

# The CUDA kernels for every GPU, warnings as errors; then what the machine code holds. No GPU.
CUDA := $(CURDIR)/build/cuda
cuda: $(PY)
	$(call need,$(TEST_GROUPS))
	SE_KERNELS_CPU=OFF SE_KERNELS_CUDA=ON CMAKE_ARGS="$${CMAKE_ARGS:-} -DSE_KERNELS_WERROR=ON" \
	  $(PY) setup.py --quiet build_ext --build-lib $(CUDA)
	@$(call build_cuda_on_host,$(CUDA_ON_HOST))
	SE_KERNELS_CUDA_BUILD=$(CUDA)/se_kernels $(PYTEST) $(PYTEST_ARGS) tests/gpu/test_cuda_build.py \
	  tests/gpu/test_cuda_instructions.py
	PYTHONPATH=tests:. $(PY) -m sass.table $(CUDA)/se_kernels/_cuda*.so $(CUDA)/kernels.jsonl

# After `make cuda`: what the kernels execute, for `python -m benchmarks predict`. Minutes.
instructions: $(PY)
	$(call need,$(TEST_GROUPS))
	@$(call build_cuda_on_host,$(CUDA_ON_HOST))
	PYTHONPATH=tests:. $(PY) -m sass.record benchmarks/instructions.jsonl

# Takes the environment as it is, so that it runs where nothing can be installed. Options in
# GPU_OPTIONS: --results DIR, --seconds N, --commit HASH, --host; tools/gpu/__main__.py has them.
GPU_STAGES ?=
GPU_OPTIONS ?=
gpu:
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m tools.gpu $(GPU_STAGES) $(GPU_OPTIONS)

NATIVE_SOURCES := find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu'

lint: $(PY)
	$(call need,torch lint)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PYTHONPATH=$(CURDIR) lint-imports
	$(PY) -m mypy
	$(NATIVE_SOURCES) | xargs clang-format --dry-run --Werror
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

format: $(PY)
	$(call need,lint)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(NATIVE_SOURCES) | xargs clang-format -i

# The native core, and the CUDA backend on the host, under AddressSanitizer and
# UndefinedBehaviorSanitizer (GCC). `pytest`, not `python -m pytest`, and an empty pythonpath: the
# checkout must not come before the sanitized copy.
SANITIZED := $(CURDIR)/build/sanitize
CXX_FOR_SANITIZE := $(if $(filter default,$(origin CXX)),g++,$(CXX))
runtime = $(shell $(CXX_FOR_SANITIZE) -print-file-name=$(1))

sanitize: env
	rm -rf $(SANITIZED)
	SE_KERNELS_CPU=ON SE_KERNELS_CUDA=OFF CMAKE_ARGS="$${CMAKE_ARGS:-} -DSE_KERNELS_SANITIZE=ON" \
	  $(PY) -m pip install --quiet --no-deps --no-build-isolation --target $(SANITIZED) .
	$(call build_cuda_on_host,$(CUDA_ON_HOST)_sanitized,-DSE_KERNELS_SANITIZE=ON)
	files="$$(grep -l 'mark\.native' tests/*/test_*.py)"; \
	LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libubsan.so) $(call runtime,libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	PYTHONPATH=$(SANITIZED):$(CURDIR):$(CURDIR)/tests SE_KERNELS_SANITIZED=$(SANITIZED) \
	SE_KERNELS_CUDA_ON_HOST=$(CUDA_ON_HOST)_sanitized SE_KERNELS_EXAMPLES=60 \
	  pytest -n $(WORKERS) -o pythonpath= -m native -k "not triton" $(PYTEST_ARGS) $$files

# aarch64: the core by a cross-compiler, its native tests under qemu, NEON in its machine code.
# Debian, Ubuntu: apt install g++-aarch64-linux-gnu qemu-user.
ARM := aarch64-linux-gnu
QEMU ?= qemu-aarch64
NO_ARM := make arm needs $(ARM)-g++ and $(QEMU): apt install g++-$(ARM) qemu-user
arm: $(PY)
	@command -v $(ARM)-g++ > /dev/null && command -v $(QEMU) > /dev/null || \
	  { echo "$(NO_ARM)" >&2; exit 1; }
	$(call need,build)
	@cmake -S tests/native -B build/arm -G Ninja -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM)-g++ \
	  -DCMAKE_CROSSCOMPILING_EMULATOR="$(QEMU);-L;/usr/$(ARM)" > /dev/null
	cmake --build build/arm
	@$(ARM)-objdump -d build/arm/native_tests | grep 'fmla.*v[0-9]*\.4s' > /dev/null || \
	  { echo "no NEON in build/arm/native_tests" >&2; exit 1; }
	ctest --test-dir build/arm --output-on-failure --verbose

# A wheel for each Python found, without and with CUDA: audited, repaired, installed, checked.
wheels: $(PY)
	$(call need,build wheels)
	@$(PY) -m tools.wheels $(WHEELS_ARGS)

# The quick tests over each Python found and each torch that is supported.
matrix: $(PY)
	$(call need,wheels)
	@$(PY) -m tools.matrix $(MATRIX_ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	rm -f se_kernels/_C*.so se_kernels/_cuda*.so se_kernels/_build_info.py
	find se_kernels benchmarks tests examples tools -name __pycache__ -prune -exec rm -rf {} +
