# `make demo` and `make test` do everything on a fresh machine: environment, install, run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint docs audit bench bench-memory stream links soak fuzz clean

# Installed anew when the package's metadata or its C sources change.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard src/i3lm/native/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

# What the suite, the checks and the documentation need beside it.
$(DEVELOP): $(INSTALLED)
	$(PIP) -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/i3lm train --preset i3-mini --time 5m --out demo
	@echo
	$(BIN)/i3lm chat demo --temperature 0 -p "Who are you?"
	printf 'Who are you?\nWhat can you do?\n' | $(BIN)/i3lm chat demo --temperature 0

# Two processes, each on one thread where a test asks for no more; a file's tests stay together.
test: $(DEVELOP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# About ten minutes on two cores; each part by itself: i3lm bench train, ...
bench: $(INSTALLED)
	$(PIP) -e '.[bench]'
	for part in startup tokenizer decode train; do $(BIN)/i3lm bench $$part || exit 1; done

# Peak memory against the planner's estimate, 96 configurations: ten minutes.
bench-memory: $(INSTALLED)
	$(BIN)/python -m benchmarks.memory

# 10 GB of generated text through the stream, 2 GB packed: two to four minutes, 3 GB of disk.
stream: $(DEVELOP)
	$(BIN)/python -m benchmarks.stream --gigabytes 10 --pack 2

# Two processes on a link of 100 Mbit/s and 50 ms, plain and DiLoCo: ten minutes, as root on Linux.
links: $(INSTALLED)
	$(BIN)/python -m benchmarks.links

# The documentation site, in site/: built strictly, every link checked, nothing from other hosts.
docs: $(DEVELOP)
	$(BIN)/python tools/build_site.py

lint: $(DEVELOP)
	$(BIN)/ruff format --check src tests benchmarks tools setup.py
	$(BIN)/ruff check src tests benchmarks tools setup.py
	$(BIN)/mypy

# Known vulnerabilities among the pinned packages; says so and passes where the service is away.
audit: $(DEVELOP)
	$(BIN)/python -m benchmarks.audit

# MINUTES of training with a fault a minute, beside the same undisturbed; and a kill at every instant of a save.
MINUTES ?= 120
soak: $(DEVELOP)
	I3LM_ALL_INSTANTS=1 $(BIN)/python -m pytest -o timeout=3600 tests/training/test_every_instant.py
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

# Each target for FUZZ_MINUTES; make fuzz TARGETS="jsonl text" runs two of them.
FUZZ_MINUTES ?= 10
fuzz: $(DEVELOP)
	$(PIP) -e '.[fuzz]'
	$(BIN)/python -m benchmarks.fuzz $(TARGETS) --minutes $(FUZZ_MINUTES)

clean:
	rm -rf $(VENV) build demo site src/*.egg-info src/i3lm/native/*.so
