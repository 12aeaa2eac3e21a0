# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo quick simulated test fast inspect lint types clean

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

simulated: install
	$(BIN)/truing demo --simulated

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# Inspect in an environment of its own, without torch: its dependencies are many.
inspect: .venv-inspect/.installed
	.venv-inspect/bin/python -m pytest tests/bridges

.venv-inspect/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-inspect
	.venv-inspect/bin/python -m pip install -q uv
	.venv-inspect/bin/uv pip install -q -p .venv-inspect/bin/python -c constraints.txt \
	  inspect_ai pydantic numpy scipy PyYAML click rich jinja2 pyarrow safetensors openai pytest hatchling editables
	.venv-inspect/bin/uv pip install -q -p .venv-inspect/bin/python --no-deps --no-build-isolation -e .
	touch $@

fast: install
	$(BIN)/python -m pytest -n 2 -m "not torch and not model and not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

clean:
	rm -rf .venv .venv-inspect truing-demo truing-audits
