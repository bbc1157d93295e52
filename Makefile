# Thin on purpose: deploy/setup makes .venv what a lock file says, deploy/tied.py ends a command together with make.
.DEFAULT_GOAL := help
.PHONY: help demo dev test check bench bench-faults soak schema lock clean

SETUP := deploy/setup
RUN := exec .venv/bin/python -IS deploy/tied.py .venv/bin

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

demo: ## Set everything up, show the whole product once with emulated providers, and end
	@$(SETUP)
	@$(RUN)/penstock demo

dev: ## The same, but stay up: prints URLs, an API key and a link to the console
	@$(SETUP)
	@$(RUN)/penstock dev

test: ## Run every test
	@$(SETUP) dev
	@$(RUN)/pytest

check: ## Lint, types, layers, and the tests that need no further processes
	@$(SETUP) dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	@$(RUN)/pytest -m "not slow"

bench: ## Measure the token route against its baselines
	@$(SETUP) dev
	@$(RUN)/python -m tests.bench

bench-faults: ## Live through a simulated day of faults, a stampede and a herd; QUICK=1 for about a minute
	@$(SETUP) dev
	@$(RUN)/python -m tests.bench.faults

soak: ## Tell random stories of faults for SECONDS=600, or those of one SEED=…: make soak SEED=42
	@$(SETUP) dev
	@$(RUN)/python -m tests.soak --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

schema: ## Write migrations/schema.sql anew from the migrations
	@$(SETUP)
	@$(RUN)/python deploy/schema.py

lock: ## Write the lock files anew from pyproject.toml (needs uv)
	deploy/lock

clean: ## Remove what make has made: environment, caches, and the data and keys of demo and dev
	rm -rf .venv .penstock .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . \( -name __pycache__ -o -name node_modules \) -prune -exec rm -rf {} +
