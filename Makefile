# Make: one command each to install, run, check and measure. `make help` lists them.
# Needs only make, Python 3.11-3.13 and a network; a C++20 compiler makes vector search faster.

PYTHON ?= python3
SEED ?=
FEED ?=
NAME ?=
BIN := .venv/bin
UV := $(BIN)/uv pip
NATIVE := $(wildcard native/*.cpp native/*.hpp native/CMakeLists.txt)
PACKAGES := schemas native models agents streams bench tests
LOCK := $(UV) compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

# $(call try,LOG,COMMAND,SENTENCE): run quietly; when it fails, say one sentence and where the details are.
try = { $(2); } > $(1) 2>&1 || { echo "make venv: $(strip $(3)) Details: $(1)" >&2; exit 1; }

.PHONY: help venv lock demo test night release-proof lint bench clean
.DEFAULT_GOAL := help

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

venv: .venv/built ## install everything into .venv (PYTHON=python3.12 picks another interpreter)

# The third-party packages: pip brings a pinned uv, uv brings the rest, every file checked against its hash.
.venv/installed: constraints.txt constraints-nodeps.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "make venv: Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=/path/to/python3." >&2; exit 1; }
	@mkdir -p .venv
	@$(call try,.venv/venv.log,$(PYTHON) -m venv .venv,this Python cannot create virtual environments.)
	@sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt
	@$(call try,.venv/uv.log,$(BIN)/python -m pip install --retries 1 --require-hashes -r .venv/uv.txt,\
	  uv could not be downloaded; is there a network?)
	@echo "make venv: installing the packages of constraints.txt, about 7 GB"
	@$(call try,.venv/install.log,VIRTUAL_ENV=.venv $(UV) install --require-hashes -r constraints.txt && \
	  VIRTUAL_ENV=.venv $(UV) install --require-hashes --no-deps -r constraints-nodeps.txt,\
	  the packages could not be downloaded; is there a network?)
	@touch $@

# This project itself: editable, so only the extension needs building again when its sources change.
.venv/built: .venv/installed pyproject.toml $(NATIVE)
	@$(call try,.venv/build.log,VIRTUAL_ENV=.venv PATH="$(CURDIR)/$(BIN):$$PATH" $(UV) install --no-deps --no-build-isolation \
	  --reinstall-package xinfluencer -e .,the project could not be built.)
	@touch $@
	@$(BIN)/python -c 'import native; print("make venv: done, vector search runs on", native.backend())'

lock: .venv/built ## choose the newest allowed versions again and write the constraints
	@VIRTUAL_ENV=.venv $(LOCK) --upgrade pyproject.toml --group dev -o constraints.txt
	@sed -n 's/^\(.*==[^ ]*\).*/\1/p' constraints-nodeps.txt | VIRTUAL_ENV=.venv $(LOCK) --no-deps - -o constraints-nodeps.txt

demo: .venv/built ## the whole circle on this machine (FEED=file or stream, SEED=number)
	@$(BIN)/xinfluencer demo $(if $(FEED),--feed $(FEED)) $(if $(SEED),--seed $(SEED))

lint: .venv/built ## style, types and the direction of imports
	@$(BIN)/ruff check $(PACKAGES)
	@$(BIN)/ruff format --check $(PACKAGES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: lint ## lint, then every test
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

night: .venv/built ## the fault catalogue at its night sizes (under two hours), then docs/PROOF.md
	@rm -rf .proof/night
	@XINFLUENCER_PROOF=night $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m proof; code=$$?; \
	  XINFLUENCER_PROOF=night $(BIN)/python -m tests.proof && exit $$code

release-proof: .venv/built ## the same at release sizes: days
	@rm -rf .proof/release
	@XINFLUENCER_PROOF=release $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m proof; code=$$?; \
	  XINFLUENCER_PROOF=release $(BIN)/python -m tests.proof && exit $$code

bench: .venv/built ## measure against a peer (NAME=hop; without NAME, list the benchmarks)
	@$(BIN)/python -m bench $(NAME)

clean: ## remove the environment, builds and caches; var/ with its data stays
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +
