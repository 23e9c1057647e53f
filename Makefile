# Each target makes the virtual environment first, where it is not there yet, and nothing twice.
# torch comes first, in the tested version: as somebody's dependency pip would take the newest one.
export OMP_WAIT_POLICY ?= passive
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow check bench studies clean
.DELETE_ON_ERROR:

.venv/torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)"
	touch $@

.venv/core: .venv/torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

# timm is a test oracle; its own dependency, torchvision, has no build for this torch on a CPU.
.venv/dev: .venv/core
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps "$$(grep '^timm==' constraints.txt)"
	touch $@

demo: .venv/core
	$(BIN)/vitrail demo --out runs/demo

# Two files at a time with one thread each: quicker than one at a time with two.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/dev
	$(BIN)/python -m pytest -m slow --timeout=1800

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

bench: .venv/dev
	for file in $(filter-out benchmarks/studies.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

# Hours: every run of docs/studies.md. It may be stopped, and goes on.
studies: .venv/dev
	$(BIN)/python benchmarks/studies.py --data ../shared/data/cifar10 --jobs 2

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache
