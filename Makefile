# Any target may run first: the environment is built once and stamped.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: demo test check soak bench bench-quick docs clean

demo: $(STAMP)                     ## phantoms → train → segment → evaluate → montage; minutes on two cores
	$(BIN)/medseg-diff demo --out demo

test: $(STAMP) check               ## every check and test but the long ones
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not soak"

check: $(STAMP)                    ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

soak: $(STAMP)                     ## the long tests
	$(BIN)/python -m pytest -m soak

bench: $(STAMP)                    ## quality and speed against references
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.reference

bench-quick: $(STAMP)              ## speed beside straightforward code, in a minute or two; the last line is JSON
	$(BIN)/python -W ignore -m benchmarks.reference --quick

docs: $(STAMP)                     ## site/: the pages, and the API out of the docstrings; offline, no warning allowed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dicom,ray]'
	touch $@

clean:
	rm -rf $(VENV) demo runs site dist build .pytest_cache .mypy_cache .ruff_cache
