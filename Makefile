# `make train` and `make test` do all the set-up from nothing. The environment is .venv, made by uv where it is installed.
PYTHON ?= python3
BASE ?= ff6eb0a
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: train test format golden bench faults clean

train: .venv/.users
	$(BIN)/gptloom train shakespeare

test: .venv/.developers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --dist worksteal

format: .venv/.developers
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Whether losses, weights and texts of every recipe are those of commit BASE, bit for bit; NAMES="tiny 'run muon'" takes some.
golden: .venv/.developers
	$(BIN)/python tests/golden/compare.py --base $(BASE) $(if $(NAMES),--names $(NAMES))

# Kills, damage, full disks, signals: hours of bad luck in about one. NANOGPT=PATH tries the same on a checkout of nanoGPT.
faults: .venv/.developers
	$(BIN)/python tests/faults $(if $(NANOGPT),--nanogpt $(NANOGPT))

# Every figure that the README names. NANOGPT=PATH measures against a checkout of nanoGPT, too.
bench: .venv/.developers
	$(if $(NANOGPT),$(BIN)/python benchmarks/against_nanogpt.py --nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/against_plain.py $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/sampling.py $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/tiny_recipe.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/bookkeeping.py
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/tokenizing.py
	$(BIN)/python benchmarks/busy_machine.py
	$(BIN)/python benchmarks/false_alarms.py

.venv/bin/python:
	(command -v uv >/dev/null && uv venv --seed --quiet --python $(PYTHON) .venv) || $(PYTHON) -m venv --clear .venv

.venv/.users: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[tokenizers,translate]"
	touch $@

.venv/.developers: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
