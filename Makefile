# `make pretrain` needs Python 3.10 or later, g++ and make; everything else comes into .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
OUT ?= runs/photos-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help setup pretrain test bench ladder check-triton36 check-torch211 fuzz sanitize lint clean pip-from-debian
help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

pretrain: setup  ## pre-train on photographs, probe, print the table (7 to 10 minutes)
	$(BIN)/ldae train demo --data photos --minutes 3 --evaluate.epochs 45 --out $(OUT)

# Two at a time: each computes on one thread. The tests of a file stay together, for what they share;
# the longest file is the first by name.
test: setup  ## the tests (10 to 12 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

bench: setup  ## every op against eager, torch.compile and peers; table and picture in bench/out/
	mkdir -p bench/out
	$(BIN)/python -m pytest bench --benchmark-json=bench/out/bench.json
	$(BIN)/python bench/table.py bench/out/bench.json --png bench/out/bench.png | tee bench/out/table.txt

ladder: setup  ## the train step, one technique a rung, beside a plain one (about 8 minutes)
	$(BIN)/python bench/ladder.py

# torch 2.11 brings triton 3.6. A venv of its own has that one over the project's packages.
OLD := .venv-triton36
SITE = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
check-triton36: setup  ## compile the Triton kernels for sm_90 under triton 3.6 too
	test -x $(OLD)/bin/python || $(BIN)/python -m venv --without-pip $(OLD)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > $$($(OLD)/bin/python $(SITE))/project.pth
	$(BIN)/pip --python $(OLD)/bin/python install --quiet --disable-pip-version-check --no-deps --ignore-installed triton==3.6.0
	$(OLD)/bin/python -c 'import triton; assert triton.__version__ == "3.6.0", triton.__version__'
	$(OLD)/bin/python -m pytest tests/test_aot.py

# The oldest torch that is supported, a CUDA build: the library must have its CUDA kernels there. Its
# own SDPA is left out: on a CPU with AVX2 its float32 gradients miss twice plain torch's error.
OLDEST := .venv-torch211
check-torch211:  ## build with CUDA under torch 2.11, run the contract there (needs nvcc, 3 GB)
	test -x $(OLDEST)/bin/pip || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check torch==2.11.0
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools ninja
	LDAE_NATIVE=1 $(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation ".[dev]"
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check "numpy<2.4"  # triton 3.6's interpreter
	PYTHONSAFEPATH=1 $(OLDEST)/bin/python -c 'import torch; import ldae_fast.ops; assert \
	  torch._C._dispatch_has_kernel_for_dispatch_key("ldae::normal", "CUDA")'
	PYTHONSAFEPATH=1 $(OLDEST)/bin/python -m pytest -p no:cacheprovider tests/test_contract.py \
	  tests/test_attention_kernels.py tests/test_noise_kernels.py -k "not sdpa"

fuzz: setup  ## 10,000 valid and 2,000 invalid random calls an op (about 10 minutes)
	LDAE_FUZZ_VALID=10000 LDAE_FUZZ_INVALID=2000 $(BIN)/python -m pytest tests/test_fuzz.py

sanitize: setup  ## the compiled ops under AddressSanitizer and UBSan (some minutes)
	tests/sanitize.sh $(BIN)/python

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
	rm -rf $(VENV) $(OLD) $(OLDEST) build *.egg-info kernels/*.so
