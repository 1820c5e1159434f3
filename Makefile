# Every target first makes the machine ready (tools/setup): quick and silent when it already is.
#
#   make test PYTEST_ARGS="-k ring -x"     make prove ARGS=--json     make test PYTHON=python3.12
#   make test JOBS=0             one test after the other, in one process
#   make check-series SOURCES="qemu-10.0.tar.xz qemu-10.2"

ARGS ?=
QEMU ?= $(or $(QEMU_RING_QEMU),qemu-system-x86_64)
PYTEST_ARGS ?=
# Two for each CPU: much of what tests do is to wait.
JOBS ?= $(shell echo $$((2 * $$(nproc))))
SOURCES ?=

python := .venv/bin/python
sources := qemu_ring tests model $(wildcard benchmarks/*.py examples/*.py tools/*.py)
scripts := tools/setup .ci/run
# Each worker takes half of what another has left when it has done its own.
pytest := $(python) -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

# Tests start the command hundreds of times.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup test test-full prove demo lint types patched coverage unit check-series format firmware wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

setup: ## install what is missing: Debian packages, .venv
	@tools/setup test

# Before the tests, not in the first that needs it: what it does is seen then.
patched: setup ## the patched QEMU, which some minutes make unless the cache has it
	@[ -n "$(QEMU_RING_PATCHED_QEMU)" ] || .venv/bin/qemu-ring build >/dev/null

test: lint patched ## lint, and the tests that this machine can run but for those that take long
	$(pytest) $(PYTEST_ARGS)

test-full: lint patched ## lint, and every test that this machine can run
	$(pytest) --full $(PYTEST_ARGS)

prove: ## is this machine's QEMU losing dirty memory? succeeds with either answer
	@tools/setup prove
	@.venv/bin/qemu-ring prove --qemu "$(QEMU)" $(ARGS) || { status=$$?; [ $$status -eq 1 ] || exit $$status; }

demo: patched ## one table: what this machine's QEMU loses, and the patched one by each policy
	@$(python) tools/demo.py --qemu "$(QEMU)" $(if $(QEMU_RING_PATCHED_QEMU),--patched "$(QEMU_RING_PATCHED_QEMU)") $(ARGS)

lint: setup ## ruff, import rules, mypy, and shellcheck where it is installed
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	.venv/bin/lint-imports --no-cache
	@$(MAKE) --no-print-directory types
	@! command -v shellcheck >/dev/null || shellcheck $(scripts)

types: setup ## mypy
	$(python) -m mypy --explicit-package-bases $(sources)

# The workers' figures are joined whether or not a test failed.
coverage: setup ## what the tests of `make test` go through, lines and branches: htmlcov/index.html
	$(python) -m coverage erase
	status=0; $(subst -m pytest,-m coverage run -m pytest,$(pytest)) $(PYTEST_ARGS) || status=$$?; \
	$(python) -m coverage combine --quiet && $(python) -m coverage html --quiet && \
	$(python) -m coverage report --skip-covered --sort=cover && exit $$status

unit: setup ## the tests that start no QEMU
	$(pytest) tests/unit $(PYTEST_ARGS)

check-series: setup ## each patch builds alone on QEMU's SOURCES; takes half an hour for each
	@[ -n "$(SOURCES)" ] || { echo 'name QEMU sources: make check-series SOURCES="DIR TARBALL"' >&2; exit 2; }
	QEMU_RING_SERIES_SOURCES="$(SOURCES)" $(python) -m pytest tests/qemu/build/check_series.py

format: setup ## let ruff rewrite the code
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

firmware: setup ## rebuild the firmware images from their sources
	$(python) -c 'from pathlib import Path; from qemu_ring.guest import IMAGES, build_image; \
	[Path(f"qemu_ring/guest/{name}.bin").write_bytes(build_image(name)) for name in IMAGES]'

wheel: setup ## build a wheel into dist/
	$(python) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what make made, .venv too
	rm -rf .venv build dist htmlcov .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +
