# make demo    pre-train a small elastic network on the embedded images, cut three sizes out of
#              it, and measure every size: ends with a table and a picture
# make test    run every test, but for those that take minutes (TEST_FLAGS="-m slow")
# make lint    check style and formatting
# make readme  put the table and the picture of the last demo into README.md
# make clean   remove what the commands above made
#
# Variables: PYTHON (3.11 or newer), VENV, FAMILY (vit, swin, resnet), WORKDIR, DEMO_FLAGS
# (passed to train.py, such as --config.train.steps=20), EVAL_FLAGS (passed to eval.py, such as
# --subnets smallest,intact), TEST_FLAGS (passed to pytest).

PYTHON ?= python3
VENV ?= .venv
FAMILY ?= vit
WORKDIR ?= runs/demo
DEMO_FLAGS ?=
EVAL_FLAGS ?=
# Two processes: compiling, most of the time, keeps one core busy. Tests of a group share a process
# because they share compiled functions; tests/conftest.py makes the groups and puts long ones first.
TEST_FLAGS ?= -n 2 --dist loadgroup --no-loadscope-reorder

BIN := $(VENV)/bin

# The sizes that the demo cuts out: the smallest, one in the middle, the whole.
SIZES_vit := smallest,w72-d3,intact
SIZES_swin := smallest,w24-d1.1.3.1,intact
SIZES_resnet := smallest,w12-d1.1.2.1,intact

# The demo's matrices are too small to share between threads: one thread trains faster.
DEMO_ENV := XLA_FLAGS=--xla_cpu_multi_thread_eigen=false

.PHONY: help demo test lint readme clean python
help:
	@sed -n '/^#$$/q; s/^# //p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo
	$(DEMO_ENV) $(BIN)/python train.py --config configs/demo_$(FAMILY).py --workdir $(WORKDIR) $(DEMO_FLAGS)
	$(BIN)/poa-jax extract --workdir $(WORKDIR) --subnet $(SIZES_$(FAMILY))
	$(BIN)/python eval.py --workdir $(WORKDIR) --task knn --subnets all --baselines $(EVAL_FLAGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

readme:
	$(BIN)/python scripts/update_readme.py $(WORKDIR)

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
