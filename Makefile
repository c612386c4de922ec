# make demo   the whole loop on two CPU processes, with a report        (installs .venv first)
# make test   lint, types and the quick tests                           (installs .venv first)
# make ci     the long tests: a SLURM cluster, killed jobs, the timed demo
# make clean  removes .venv and build; runs stay
#
# PyPI's torch for Linux is the CUDA build, some GB. Choose another build or version by e.g.
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

SHELL := bash
PYTHON ?= python3
TORCH ?= torch==2.13.0
RUN ?= runs/demo
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
PINNED := -c .venv/constraints.txt

.PHONY: demo test lint ci clean

demo: .venv/runtime build/demo/train/index.json build/demo/val/index.json
	$(BIN)/python launch/local.py --procs 2 configs/demo.yaml --run $(RUN)
	$(BIN)/auxdist report $(RUN)

build/demo/train/index.json: | .venv/runtime
	$(BIN)/python shards/build_demo.py --count 640 --samples-per-shard 40 build/demo/train

build/demo/val/index.json: | .venv/runtime
	$(BIN)/python shards/build_demo.py --count 120 --seed 1 --no-saliency build/demo/val

# One thread each: tests run side by side, and CPU results depend on the number of threads.
test ci: export OMP_NUM_THREADS := 1

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ci: .venv/development
	rm -rf build/demo runs/demo-ci
	time -p $(MAKE) demo RUN=runs/demo-ci
	$(BIN)/python -m pytest -m cluster
	$(BIN)/python -m pytest -m "slow and not cluster" -n $(WORKERS) --dist loadfile

# torch comes first and by itself: its build is the user's choice, and the other packages take it as
# it is. Setuptools is installed rather than isolated, so that its version is pinned too.
.venv/runtime: pyproject.toml constraints.txt
	@echo "Installing into .venv; this takes minutes, once."
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
		>> .venv/constraints.txt
	$(PIP) $(PINNED) setuptools
	$(PIP) $(PINNED) --no-build-isolation -e .
	touch $@

# DeepSpeed's setup imports torch, which an isolated build would not see.
.venv/development: .venv/runtime
	$(PIP) $(PINNED) --no-build-isolation -e '.[dev,pretrained,tensorboard]'
	$(PIP) $(PINNED) --no-build-isolation -e '.[deepspeed]'
	touch $@

clean:
	rm -rf .venv build
