# `make pretrain` needs Python 3.10 or later, g++ and make; everything else comes into .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
OUT ?= runs/photos-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help setup pretrain test lint clean pip-from-debian
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

pretrain: setup  ## pre-train on photographs, probe, print the table (about 8 minutes)
	$(BIN)/ldae train demo --data photos --minutes 4 --evaluate.epochs 45 --out $(OUT)

test: setup  ## the tests
	$(BIN)/python -m pytest

lint: setup  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/ready  ## the virtual environment

# torch first and alone: anything that depends on it must find it there, the build of csrc/ too.
$(VENV)/ready: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || $(MAKE) --no-print-directory pip-from-debian
	$(PIP) "$(TORCH)"
	$(PIP) -c constraints.txt setuptools ninja
	$(PIP) -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

# Debian keeps pip for venvs in a package of its own; fetching it takes no root.
pip-from-debian:
	$(PYTHON) -m venv --without-pip $(VENV)
	cd $(VENV) && apt-get download -qq python3-pip-whl && dpkg-deb -x python3-pip-whl_*.deb pip-whl \
	  || { echo "no pip for a venv here: apt-get install python3-venv" >&2; exit 1; }
	PYTHONPATH=$$(echo $(VENV)/pip-whl/usr/share/python-wheels/pip-*.whl) \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check pip

clean:  ## removes the virtual environment and what builds left
	rm -rf $(VENV) build *.egg-info kernels/*.so
