# What a person types: `make demo`, `make test`. Each sets up what it needs and no more:
# a virtual environment in .venv, and Debian's packages where a program is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# How many tests run at a time: one more than there are cores, since many of them wait for something.
# `make test WORKERS=0` runs all in one process, which -s and --pdb need.
WORKERS ?= $(shell expr $$(nproc) + 1)
DEMO_ARGS ?=

# How often and how long `make bench` measures each row; `make bench ROUNDS=1 SECONDS=1` is short.
ROUNDS ?=
SECONDS ?=
BENCH_ARGS ?=

# The programs that the tests run as peers, each with the package that Debian has it in; and what
# builds the filesystem that fails on demand.
PEERS := mke2fs:e2fsprogs fio:fio nbdcopy:libnbd-bin nbdinfo:libnbd-bin nbdfuse:libnbd-bin nbdkit:nbdkit \
	qemu-img:qemu-utils qemu-io:qemu-utils qemu-nbd:qemu-utils nbd-client:nbd-client \
	qemu-system-x86_64:qemu-system-x86 openssl:openssl nc:netcat-openbsd \
	nbd-server:nbd-server nbdsh:python3-libnbd systemd-analyze:systemd man:man-db zsh:zsh fish:fish \
	promtool:prometheus chromium:chromium chromedriver:chromium-driver \
	mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs \
	gcc:gcc /usr/include/stdio.h:libc6-dev /usr/include/fuse3/fuse.h:libfuse3-dev faketime:faketime

# What the benchmarks compare with and ask; whatever is missing all the same is missing in the table.
RIVALS := fio:fio nbdcopy:libnbd-bin nbdkit:nbdkit qemu-nbd:qemu-utils nbd-server:nbd-server \
	ip:iproute2 tc:iproute2 taskset:util-linux

# A test file that needs pytest imports it; trial runs all the others. `make trial TRIAL=tests/wire`
# runs those of one folder.
TRIAL ?= tests
TRIALABLE = $$(grep -rLE '^(import|from) pytest' --include='test_*.py' $(TRIAL))

# The demonstration and the tests share the client that trusts nobody.
SHARED := $(CURDIR):$(CURDIR)/tests

.PHONY: help demo test trial fuzz simulate storm bench bench-migration bench-profile package docs versions lint format tables matrix coverage clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo      move an image that is in use, and see that nothing is lost'
	@echo 'make test      run all tests, real clients included (PYTEST_ARGS="-k name" for some)'
	@echo 'make trial     run those that need nothing of pytest, under trial (TRIAL=tests/wire for some)'
	@echo 'make fuzz      send wrong streams for ten minutes (FUZZ_SEED=… repeats what it found)'
	@echo 'make simulate  try the handover in all simulated ways (SCHEDULE=… plays one again)'
	@echo 'make storm     migrate with real processes that die, 200 times (STORM_SEED=… repeats one)'
	@echo 'make bench     serve beside other servers, and write docs/figures (ROUNDS=1 SECONDS=1: short)'
	@echo 'make bench-migration  migrate beside nbdcopy, likewise (ROUNDS=1: short)'
	@echo 'make bench-profile    tell where the time of each row of make bench goes (as root)'
	@echo 'make package   a wheel and a source archive, with the manual, in dist/'
	@echo 'make docs      the documentation as a site, in docs/_build/html; a warning is an error'
	@echo 'make versions  a part of the tests, with each Python that is found, old and new libraries'
	@echo 'make lint      ruff, its format, and mypy --strict'
	@echo 'make format    let ruff mend what it can'
	@echo 'make tables    renew the tables of docs/ that follow from the code'
	@echo 'make matrix    try everybody with everybody, and renew the tables of what works'
	@echo 'make coverage  the tests again, and which branches they did not take'
	@echo 'make clean     remove everything that was made here, .venv too'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'flexmigrate needs Python 3.10 or newer; try make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || .ci/need +python3-venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.developing: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(VENV)/.packaging: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[package]'
	@touch $@

$(VENV)/.documenting: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

demo: $(VENV)/.installed
	@.ci/need mke2fs:e2fsprogs
	@PYTHONPATH="$(SHARED)" $(BIN)/python -m demo $(DEMO_ARGS)

test: $(VENV)/.developing
	@.ci/need $(PEERS)
	CUT_STEP=$${CUT_STEP:-4} $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_ARGS)

# Hypothesis gives each example a deadline, unless it finds itself in CI: the machine may be busy.
trial: $(VENV)/.developing
	@.ci/need $(PEERS)
	CI=1 PYTHONPATH="$(SHARED)" FLEXMIGRATE_STATE_DIR=$(CURDIR)/_trial_temp/state \
		$(BIN)/trial --temp-directory=_trial_temp $(TRIALABLE)

fuzz: $(VENV)/.developing
	FUZZ_ANYWHERE=1 FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/fuzz

simulate: $(VENV)/.developing
	$(if $(SCHEDULE),PYTHONPATH="$(SHARED)" $(BIN)/python -m simulation '$(SCHEDULE)', \
		FLEXMIGRATE_SIMULATE_EVERYTHING=1 CUT_STEP=1 $(BIN)/python -m pytest -o faulthandler_timeout=0 \
			tests/migration/test_every_cut.py tests/simulation)

storm: $(VENV)/.developing
	@.ci/need $(PEERS)
	STORM_ANYWHERE=1 STORM_RUNS=$${STORM_RUNS:-200} $(BIN)/python -m pytest --numprocesses=$(WORKERS) -o faulthandler_timeout=0 tests/storm/test_storm.py

bench: $(VENV)/.installed
	-@.ci/need $(RIVALS)
	$(BIN)/python -m bench.serving $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(BENCH_ARGS)

bench-migration: $(VENV)/.installed
	-@.ci/need $(RIVALS)
	$(BIN)/python -m bench.migrating $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH_ARGS)

bench-profile: $(VENV)/.installed
	-@.ci/need $(RIVALS) perf:linux-perf
	$(BIN)/python -m bench.profiling $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(BENCH_ARGS)

# Each has a virtual environment in this folder, which is kept.
VERSIONS ?= .versions

versions: $(VENV)/.developing
	$(BIN)/python .ci/versions $(VERSIONS)

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(VENV)/.installed
	@.ci/need dot:graphviz
	$(BIN)/python docs/regenerate.py

matrix: $(VENV)/.developing
	@.ci/need $(PEERS)
	FLEXMIGRATE_WRITE_MATRIX=1 $(BIN)/python -m pytest tests/interop/test_matrix.py

coverage: $(VENV)/.developing
	@.ci/need $(PEERS)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine
	$(BIN)/coverage report

docs: $(VENV)/.documenting
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo 'See docs/_build/html/index.html.'

package: $(VENV)/.packaging
	$(BIN)/python docs/manual.py share/man/man1/flexmigrate.1
	rm -rf dist
	$(BIN)/python -m build
	@echo 'See dist/.'

clean:
	rm -rf $(VENV) .versions build dist share docs/_build *.egg-info _trial_temp* .coverage* htmlcov \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
