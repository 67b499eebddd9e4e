# Every task of the project; people, hooks and CI call the same targets. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pixelgate
# uv from the machine, else one of our own outside the clone, so that a second clone does not fetch it again.
UV := $(or $(shell command -v uv),$(CACHE)/uv/bin/uv)
VENV := .venv
BIN := $(VENV)/bin

PACKAGES := common gateway embed-service caption-service detect-service color-service storage-service deploy/local
DEV_PACKAGES := starter-models
CODE := common gateway embed-service caption-service detect-service color-service storage-service deploy starter-models tests bench
MYPY_PACKAGES := pixelgate_common gateway embed_service caption_service detect_service color_service storage_service pixelgate_local starter_models
PYPROJECTS := $(addsuffix /pyproject.toml,$(PACKAGES) $(DEV_PACKAGES))

# Nothing here may reach for a model hub, write settings home, or send a word anywhere.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

## --- run ---------------------------------------------------------------------------------------------------------

.PHONY: run
run: $(VENV)/.run ## Start Pixelgate on this machine (address: http://127.0.0.1:8004); Ctrl-C stops it
	@exec $(BIN)/python -m pixelgate_local

.PHONY: demo
demo: $(VENV)/.run ## Import the sample pictures, search them by words and by picture, and write demo.png
	@$(BIN)/python -m pixelgate_local.demo

## --- check -------------------------------------------------------------------------------------------------------

.PHONY: test
test: lint test-unit test-contract test-e2e test-load ## Check everything: style, types, structure, and all tests

.PHONY: lint
lint: $(VENV)/.dev ## Style, types and the rules of who may import whom
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(addprefix -p ,$(MYPY_PACKAGES))
	@$(BIN)/lint-imports

.PHONY: test-unit
test-unit: $(VENV)/.dev fonts ## The tests beside each service
	@$(BIN)/pytest -q $(addsuffix /tests,$(PACKAGES) $(DEV_PACKAGES))

.PHONY: test-contract
test-contract: $(VENV)/.dev fonts ## The public API and what README promises
	@$(BIN)/pytest -q tests/contract

.PHONY: test-e2e
test-e2e: $(VENV)/.dev fonts ## All services as processes: the main job, crashes, bad input
	@$(BIN)/pytest -q tests/e2e

.PHONY: test-load
test-load: $(VENV)/.dev fonts ## More requests at once than can be served
	@$(BIN)/pytest -q tests/load

.PHONY: bench
bench: $(VENV)/.dev fonts ## Measure against what others would write; prints ratios with medians (about 20 minutes)
	@$(BIN)/python -m bench

.PHONY: evaluate
evaluate: $(VENV)/.dev fonts ## Measure on 500 drawn scenes what captions, objects, cutouts and colours are worth (8 minutes)
	@$(BIN)/python -m tests.evaluation

.PHONY: format
format: $(VENV)/.dev ## Put the code into the one form
	@$(BIN)/ruff check --fix-only -q $(CODE)
	@$(BIN)/ruff format -q $(CODE)

## --- environment -------------------------------------------------------------------------------------------------

.PHONY: fonts
fonts: $(VENV)/.dev # The emoji font that test scenes are drawn with
	@$(BIN)/python -m starter_models.font

.PHONY: constraints
constraints: $(UV) ## Compile constraints.txt anew: every version, no index address
	@{ printf -- '-e ./%s\n' $(PACKAGES) $(DEV_PACKAGES); cat requirements-dev.in; } | $(UV) pip compile -q --no-config \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 --upgrade \
		-o constraints.new -
	@grep -v '^-e ' constraints.new > constraints.txt && rm constraints.new

.PHONY: hooks
hooks: $(VENV)/.dev ## Install the git hooks (they call make targets)
	@$(BIN)/pre-commit install

.PHONY: clean
clean: ## Remove the environment and caches (never the data folder)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(CACHE)/uv/bin/uv:
	@echo "Fetching uv (once) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pixelgate needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m pip install -q --disable-pip-version-check --target $(CACHE)/uv uv

$(VENV)/bin/python: | $(UV)
	@$(UV) venv -q --no-config --python $(PYTHON) $(VENV)

$(VENV)/.run: $(VENV)/bin/python constraints.txt $(addsuffix /pyproject.toml,$(PACKAGES))
	@echo "Making the environment (seconds when its packages are cached, a minute or two the first time) …"
	@$(UV) pip install -q --no-config -p $(BIN)/python -c constraints.txt $(addprefix -e ./,$(PACKAGES))
	@# ultralytics brings OpenCV with windows, rembg the one without, both into one folder: the one without, which needs no
	@# libGL, has to be the one that stays.
	@$(UV) pip install -q --no-config -p $(BIN)/python -c constraints.txt --no-deps --reinstall opencv-python-headless
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.in $(addsuffix /pyproject.toml,$(DEV_PACKAGES))
	@$(UV) pip install -q --no-config -p $(BIN)/python -c constraints.txt -r requirements-dev.in $(addprefix -e ./,$(DEV_PACKAGES))
	@touch $@
