# `make demo` and `make test` do everything on a fresh machine; the second time they start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The stamp carries the version, so that another PYTHON gets a new environment.
FOUND := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CREATED := $(VENV)/.python-$(or $(FOUND),missing)
DEMO := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# The clients of loggers bring some 150 packages, with opinions on versions, libraries of models some more: they get
# environments of their own.
LOGGERS := .venv-loggers
ZOO := .venv-zoo
CLIENTS := mlflow,wandb,comet,neptune,polyaxon,clearml

.NOTPARALLEL:
.PHONY: help demo test chaos opinfo zoo compile-test logger-test browser-test cluster-test lint format clean
.DEFAULT_GOAL := help

help:  ## says what each target does
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

demo: $(DEMO)  ## makes .venv, installs lightjax, trains examples/digits.py
	$(BIN)/python examples/digits.py

# TPU=no leaves out libtpu, the TPU compiler; its tests then say why they are skipped.
TPU ?= yes
TPU_COMPILER := $(if $(filter no,$(TPU)),,$(VENV)/.installed-tpu)

test: $(DEV) $(TPU_COMPILER)  ## the same, then ruff, pyright and every test; TPU=no does without the TPU compiler (200 MB)
	$(BIN)/python examples/digits.py
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

chaos: $(DEV)  ## kills and resumes trainings 200 times, prints survived and lost
	$(BIN)/python -m tests.resume.killing --kills 200

logger-test: $(LOGGERS)/.installed  ## installs the clients of all loggers into .venv-loggers, reads back what they wrote
	$(LOGGERS)/bin/python -m pytest -rs tests/test_client_loggers.py

browser-test: $(DEV)  ## finds the curves of a report in a real browser (apt-get install chromium)
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  echo "No Chromium is on the PATH: on Debian and Ubuntu, 'apt-get install chromium' brings it." >&2; \
	  exit 1; }
	$(BIN)/python -m pytest tests/unit/test_report.py

opinfo: $(DEV)  ## every operator of torch's own test database through the bridge, against its ledger: about an hour of CPU
	$(BIN)/python -m tests.bridge.opinfo

zoo: $(ZOO)/.installed  ## tiny models of transformers and timm trained in torch and in JAX, against their ledger: hours of CPU
	$(ZOO)/bin/python -m tests.bridge.zoo

compile-test: $(DEV)  ## trains a torch module with backend="inductor", which needs g++ and half a minute to compile
	$(BIN)/python -m pytest tests/bridge/native/inductor.py

cluster-test: $(DEV)  ## starts SLURM on two nodes, both here, and trains with srun and mpirun; installs both (Debian, root)
	tests/cluster/cluster-test $(BIN)/python

lint: $(DEV)  ## ruff, the format check and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(DEV)  ## formats the code and fixes what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## removes .venv, .venv-loggers, .venv-zoo, caches and build outputs; keeps lightjax_logs
	rm -rf $(VENV) $(LOGGERS) $(ZOO) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "lightjax needs Python 3.11 or newer and '$(PYTHON)' is $(if $(FOUND),Python $(FOUND),not one that runs): name one, as in 'make demo PYTHON=python3.12'." >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(DEMO): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a minute or two, the first time only."
	$(PIP_INSTALL) -e '.[examples]'
	@touch $@

# torch comes first and alone: whatever asks for it afterwards finds the pinned one.
$(DEV): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing with torch and the development tools into $(VENV): a few minutes, the first time only."
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[torch,dev]'
	@touch $(DEMO) $@

$(VENV)/.installed-tpu: $(DEV)
	@echo "Installing libtpu, the TPU compiler, 200 MB, once: 'make test TPU=no' does without."
	$(PIP_INSTALL) -e '.[tpu-plan]'
	@touch $@

$(LOGGERS)/.installed: $(CREATED) pyproject.toml constraints.txt
	@echo "Installing the clients of all loggers into $(LOGGERS): a few minutes, the first time only."
	$(PYTHON) -m venv --clear $(LOGGERS)
	$(LOGGERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[plot,$(CLIENTS)]' 'pytest>=8.4' pytest-timeout
	@touch $@

# Torchvision comes without its dependencies: it would bring a torch of its own.
$(ZOO)/.installed: $(CREATED) pyproject.toml constraints.txt
	@echo "Installing torch, transformers and timm into $(ZOO): a few minutes, the first time only."
	$(PYTHON) -m venv --clear $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch]' 'transformers>=5' \
	  safetensors pyyaml huggingface_hub pillow
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps 'torchvision==0.28.*' timm
	@touch $@
