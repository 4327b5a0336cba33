# make demo | test | lab | bench | lint | setup | clean        (make help says what each does)
PYTHON ?= python3
# More options for pip, for example on a machine without a GPU:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
PYTEST_ARGS ?=
LAB_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.hpcnb-installed
APT := tools/apt_packages.sh
# What tests/cluster needs: hosts with sshd, and Slurm
CLUSTER_PACKAGES := iproute2 procps openssh-server openssh-client slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins \
    openmpi-bin libhwloc15 libmunge2 libtirpc3

.DEFAULT_GOAL := help
.PHONY: help setup demo test lab bench lint clean

help:
	@echo "make demo   train a network on 4 ranks, headless; prints accuracy, time and where the notebook is"
	@echo "make test   all checks and tests; says what was skipped and why"
	@echo "make lab    JupyterLab on the notebooks"
	@echo "make bench  the benchmarks, each against a peer in the same run"
	@echo "make lint   ruff, mypy, import-linter, codespell"
	@echo "make setup  only make .venv and install into it"
	@echo "make clean  remove build/ and caches (.venv stays)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"hpcnb needs Python 3.10 or newer, {sys.executable} is {sys.version.split()[0]}; try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@$(APT) python3-venv
	@[ -x $(BIN)/pip ] || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing hpcnb and what it needs into .venv (minutes on a fresh machine)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[test,lint,notebooks]"
	@touch $@

demo: setup
	@$(APT) dataset-fashion-mnist
	@$(BIN)/python tools/run_demo.py

lab: setup
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_ARGS) notebooks

bench: setup
	@set -e; for file in benchmarks/bench_*.py; do \
	    [ -e "$$file" ] || { echo "no benchmarks/bench_*.py here"; exit 1; }; \
	    echo "== $$file"; $(BIN)/python "$$file"; \
	done

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

test: setup
	@$(APT) chromium fonts-dejavu-core dataset-fashion-mnist $(CLUSTER_PACKAGES)
	@tools/unpack_gridengine.sh build/gridengine
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -rs --ignore=tests/cluster $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,tools/private_network.sh $(BIN)/python -m pytest -rs tests/cluster)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
