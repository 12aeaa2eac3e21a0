# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# What pip says as it works, but not what is there already; its bars show the time left where there is a terminal.
PIP := --disable-pip-version-check --no-input

FAST := tests/project tests/data tests/traits tests/judges tests/test_messages.py tests/test_store.py
.PHONY: install demo quick simulated test fast inspect lint types clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@echo "1 of 3: an environment in .venv"
	$(PYTHON) -m venv .venv
	@echo "2 of 3: torch, the largest download (minutes)"
	$(BIN)/python -m pip install $(PIP) -c constraints.txt torch==2.13.0
	@echo "3 of 3: truing and what it needs"
	$(BIN)/python -m pip install $(PIP) -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/truing models get smollm2-135m
	$(BIN)/truing demo

quick: install
	$(BIN)/truing models get smollm2-135m
	$(BIN)/truing demo --quick

simulated: install
	$(BIN)/truing demo --simulated

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# Inspect in an environment of its own, without torch: its dependencies are many.
inspect: .venv-inspect/.installed
	.venv-inspect/bin/python -m pytest tests/bridges

.venv-inspect/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-inspect
	.venv-inspect/bin/python -m pip install $(PIP) uv
	.venv-inspect/bin/uv pip install -p .venv-inspect/bin/python -c constraints.txt \
	  inspect_ai pydantic numpy scipy PyYAML click rich jinja2 pyarrow safetensors openai pytest hatchling editables
	.venv-inspect/bin/uv pip install -p .venv-inspect/bin/python --no-deps --no-build-isolation -e .
	touch $@

# What needs no torch and decides most: data, traits, judges, words, store, house rules.
fast: install
	$(BIN)/python -m pytest -n 2 -m "not torch and not model and not slow" $(FAST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

clean:
	rm -rf .venv .venv-inspect truing-demo truing-audits
