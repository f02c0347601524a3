# make demo    phantom to report, in minutes       make test    lint and all tests
# make faults  SIGKILL at every durable step of a checkpoint under every ZeRO stage, all guards, all changes of world, all that
#              happens to jobs on a real SLURM; an hour or two
# make lint    ruff and the import fence           make format  lay out the code      make clean   remove .venv and caches
# Each does its own set-up in .venv, once. Needs Python 3.10 or later; PYTHON=/path/to/python3.12 chooses one.

SHELL  := /bin/bash
BIN    := .venv/bin
READY  := .venv/.ready
EXTRAS ?= cpu,mpi,codecs,codebooks,deepspeed,dev
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10
.PHONY: setup demo test faults lint format clean
.DELETE_ON_ERROR:

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@set -e; \
	if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "retinaforge needs Python 3.10 or later, with venv; none of these is: $(PYTHONS)" >&2; \
	    echo "python3 here is $$(python3 --version 2>&1)" >&2; \
	    echo "Debian, Ubuntu: apt-get install python3 python3-venv.  Or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	    exit 2; \
	  fi; \
	  echo "setting up .venv with $$("$$found" --version); some minutes, once"; \
	  "$$found" -m venv .venv; \
	fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
	  echo ".venv holds $$($(BIN)/python --version), which is too old: make clean, then again" >&2; exit 2; \
	fi; \
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'; \
	touch $@

demo: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(BIN)/retinaforge run demo

# one thread a process: ranks do not fight over the cores, and sums come out the same on every machine
test: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 --no-loadscope-reorder

faults: $(READY)
	FAULTS=all OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -s --timeout=7200 tests/faults tests/slurm tests/launch/test_zero.py tests/launch/test_universal.py tests/launch/test_launchers.py tests/launch/test_training.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage* *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
