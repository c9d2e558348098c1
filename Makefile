# make demo     the whole story in minutes        make test         unit, gradient, Ray and convergence tests
# make setup    the environment alone (.venv)     make test-faults  processes killed, files cut
# make bench    measured ratios                   make lint         ruff and mypy
# Every target sets up what it needs. Which Python: `make demo PYTHON=/path/to/python3.12`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.PHONY: setup demo test test-faults lint bench setup-latest test-latest

comma := ,
VENV := .venv
LATEST := .venv-latest
# A change of the requirements is a new stamp, hence a new set-up.
stamp = $(1)/.ready-$(shell cat pyproject.toml $(2) | cksum | cut -d' ' -f1)
READY := $(call stamp,$(VENV),constraints.txt)
READY_LATEST := $(call stamp,$(LATEST),constraints-latest.txt)

# The script and not `python -m pytest`, which puts the root first on the path: see the guards in tests/test_house.py.
PYTEST := bin/pytest -q --durations=10
# The short leg: fast tests of the house and the science, on the newest packages.
LATEST_PATHS := $(wildcard tests/test_house.py tests/operators tests/energies tests/models tests/data tests/decoding \
	tests/metrics tests/gradients tests/commands/test_publishing.py)

setup: $(READY)

demo: $(READY)
	$(VENV)/bin/energymt demo $(ARGS)

# Side by side what can be; then one by one what starts a Ray of its own. No test at all (5) is wrong only for both.
test: $(READY)
	@apart=0; ray=0; \
	$(VENV)/$(PYTEST) -n auto --maxprocesses 2 --dist loadfile -m "not ray and not faults" $(ARGS) || apart=$$?; \
	if [ $$apart -ne 0 ] && [ $$apart -ne 5 ]; then exit $$apart; fi; \
	$(VENV)/$(PYTEST) -m "ray and not faults" $(ARGS) || ray=$$?; \
	if [ $$ray -eq 5 ]; then exit $$apart; fi; exit $$ray

test-faults: $(READY)
	@code=0; $(VENV)/$(PYTEST) -m faults $(ARGS) || code=$$?; \
	if [ $$code -eq 5 ]; then echo "make test-faults: no test carries the marker 'faults'." >&2; fi; exit $$code

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	@failed=""; found=""; \
	for file in benchmarks/bench_*.py; do \
		[ -e "$$file" ] || continue; found=yes; name=benchmarks.$$(basename "$$file" .py); \
		echo "== python -m $$name"; $(VENV)/bin/python -m "$$name" $(ARGS) || failed="$$failed $$name"; \
	done; \
	if [ -z "$$found" ]; then echo "make bench: benchmarks/ holds no bench_*.py." >&2; exit 1; fi; \
	if [ -n "$$failed" ]; then echo "make bench: failed:$$failed" >&2; exit 1; fi

setup-latest: $(READY_LATEST)

test-latest: $(READY_LATEST)
	$(LATEST)/bin/python -c "import numpy, torch, transformers as t; print('torch', torch.__version__, 'transformers', t.__version__, 'numpy', numpy.__version__)"
	$(LATEST)/$(PYTEST) -m "not ray and not slow and not convergence and not faults" $(LATEST_PATHS) $(ARGS)

# make_venv FOLDER CONSTRAINTS EXTRAS: torch goes first, so that no later package chooses it.
define make_venv
	@python="$(PYTHON)"; \
	for name in $${python:-python3.11 python3.12 python3 python}; do \
		if "$$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; \
		then found="$$name"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "make setup: needs Python 3.11 or 3.12 with its venv module (tried: $${python:-python3.11, python3.12, python3, python});" \
			"install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 3; \
	fi; \
	echo "== setting up $(1) with $$("$$found" --version): torch, then some 200 packages (minutes, 2 GB or more)"; \
	"$$found" -m venv $(1)
	$(1)/bin/python -m pip install -q --disable-pip-version-check -c $(2) torch
	$(1)/bin/python -m pip install -q --disable-pip-version-check -c $(2) -e ".[$(3)]"
	@rm -f $(1)/.ready-*; touch $@
endef

$(READY):
	$(call make_venv,$(VENV),constraints.txt,dev$(comma)comet)

$(READY_LATEST):
	$(call make_venv,$(LATEST),constraints-latest.txt,dev)
