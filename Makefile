.PHONY: demo test lint bench coverage mutants setup clean

PYTHON ?= python3
BIN := .venv/bin

demo: setup  ## the whole pipeline on the sample corpus
	$(BIN)/accelerate launch --config_file recipes/accelerate/cpu.yaml -m pipeline recipes/demo.yaml --open

test: setup  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## every benchmark that fits this machine, then the card: bench/results/CARD.md
	OMP_NUM_THREADS=1 $(BIN)/python bench/all.py

coverage: setup  ## branches of what must not break, as the tests take them; fails below 95 %
	OMP_NUM_THREADS=1 $(BIN)/python bench/branches.py

mutants: setup  ## small changes to the mask, reassembly, shared prefix and score that no test notices; minutes
	rm -rf mutants
	OMP_NUM_THREADS=1 nice -n 15 $(BIN)/python bench/mutants.py

setup: .venv/installed

# pip before 26 cannot resolve these packages from open ranges, hence the upgrade first.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=26"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
