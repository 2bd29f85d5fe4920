# make demo    pre-train, evaluate and cut a small elastic network on the embedded images
# make test    run every test
# make lint    check style and formatting
# make clean   remove what the commands above made
#
# Variables: PYTHON (3.11 or newer), VENV, FAMILY (configs/demo_FAMILY.py), WORKDIR, DEMO_FLAGS
# (passed to train.py, such as --config.train.steps=20), TEST_FLAGS (passed to pytest).

PYTHON ?= python3
VENV ?= .venv
FAMILY ?= vit
WORKDIR ?= runs/demo
DEMO_FLAGS ?=
# Two processes: compiling, most of the time, keeps one core busy. Tests of a file share a process
# because they share compiled functions.
TEST_FLAGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin

.PHONY: help demo test lint clean python
help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST)) | head -n 4

demo: $(VENV)/.installed-demo
	$(BIN)/python train.py --config configs/demo_$(FAMILY).py --workdir $(WORKDIR) $(DEMO_FLAGS)
	$(BIN)/python eval.py --workdir $(WORKDIR) --task knn --subnets all

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of pyproject.toml; a changed dependency installs again.
$(VENV)/.installed-%: pyproject.toml constraints.txt | python
	@echo "Installing poa_jax[$*] into $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no $(PYTHON) here; poa_jax needs Python 3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: poa_jax needs Python 3.11 or newer, but $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1); choose one with make PYTHON=/path/to/python3.11" >&2; \
	  exit 2; }
