# `make help` lists the targets; each sets up what it needs.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint type format screenshots clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(INSTALL) --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.installed: $(VENV)/.demo
	$(INSTALL) --constraint constraints.txt --editable '.[demo,dev,gguf,s3,tensorboard,wandb]'
	touch $@

setup: $(VENV)/.installed ## Create .venv and install everything, tests' tools too, versions as in constraints.txt

demo: $(VENV)/.demo ## Pre-train, fine-tune, train reward model and judge, run PPO on Ray, evaluate: about 5 minutes
	$(BIN)/minichatgpt run demo

test: setup ## All tests that belong to every change, one real Ray run included: at most 10 minutes
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile

test-slow: setup ## The slower tests: at most 45 minutes
	$(BIN)/python -m pytest -m slow

lint: setup ## Style, docstrings, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files | grep -v -E '\.(csv|lock|svg)$$')

type: setup ## Types, strictly
	$(BIN)/mypy

format: setup ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

RUN ?= runs/demo
screenshots: setup ## Take docs/images anew from a live run: make screenshots RUN=runs/demo
	$(BIN)/python docs/images/take.py $(RUN)

clean: ## Remove runs and caches; .venv stays
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache build *.egg-info
