# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo quick planted test fast lint types clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/truing models get smollm2-135m
	$(BIN)/truing demo

quick: install
	$(BIN)/truing models get smollm2-135m
	$(BIN)/truing demo --quick

planted: install
	$(BIN)/truing demo --planted

test: install
	$(BIN)/python -m pytest -n 2 -m "not slow"

fast: install
	$(BIN)/python -m pytest -n 2 -m "not torch and not model and not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

clean:
	rm -rf .venv truing-demo truing-audits
