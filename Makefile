# Two commands are all the set-up there is: `make demo` and `make test`.
# Everything below works on a fresh Debian or Ubuntu machine with Python 3.11 or later.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
WORKERS ?= 2
PURE := tests/wire tests/routing tests/access

.PHONY: demo test lint types house tests clients bench bench-ssh soak packages clean

demo: .venv/installed
	@$(BIN)/monoport demo $(if $(DIR),--dir $(DIR)) $(if $(PORT),--port $(PORT))

test: .venv/installed lint types house tests

lint: .venv/installed
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: .venv/installed
	$(BIN)/mypy

house: .venv/installed
	$(BIN)/lint-imports

# The pure rooms first: their own tests reach every branch of them. Then everything else.
tests: .venv/installed
	$(BIN)/pytest -n $(WORKERS) --cov --cov-fail-under=100 $(PURE)
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup $(addprefix --ignore=,$(PURE))

# docs/clients.md from a run of the tests that drive clients.
clients: .venv/installed
	$(BIN)/pytest -n 0 -m client --clients docs/clients.md tests/real

bench: .venv/installed
	$(BIN)/python bench/run.py
	$(BIN)/python bench/databases.py
	$(BIN)/python bench/ssh.py

bench-ssh: .venv/installed
	$(BIN)/python bench/ssh.py

soak: .venv/installed
	$(BIN)/pytest -m soak -n 0 --timeout=0

# What the tests start: from Debian, which alone needs root, and drivers of other languages from npm and Maven Central,
# and a MongoDB server built from its Go module.
packages:
	@scripts/packages --install
	@scripts/clients
	@scripts/ferretdb

.venv/installed: requirements/dev.txt pyproject.toml scripts/environment
	@scripts/environment "$(PYTHON)"
	@touch $@

clean:
	rm -rf .venv .clients build dist bench/build .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
