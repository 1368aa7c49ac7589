# The verbs of the project. Each works on a fresh machine with Python 3.11+ and nothing else installed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo install test soak check fix bench docs sanitize

demo: install
	$(BIN)/recurra demo

install: $(READY)

# torch comes first and pinned: an unpinned torch brings gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.ready-dev: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  pytest hypothesis pytest-timeout pytest-xdist ruff mypy import-linter scikit-learn seqeval soundfile \
	  sacrebleu pillow cma ipython selenium h5py
	touch $@

# One process a core, each with one thread.
test: .venv/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

soak: .venv/.ready-dev
	$(BIN)/python -m pytest -m soak --timeout 3600

check: .venv/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The kernels by themselves under the sanitizers of memory, undefined behaviour and threads, and with allocations that fail.
sanitize:
	cmake -S . -B build/memory -DRECURRA_CHECKS=ON -DRECURRA_OPTIMIZE=-O1 -DCMAKE_BUILD_TYPE=Debug \
	  -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g1"
	cmake --build build/memory --parallel
	build/memory/checks
	cmake -S . -B build/threads -DRECURRA_CHECKS=ON -DRECURRA_OPTIMIZE=-O1 -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS="-fsanitize=thread -g1"
	cmake --build build/threads --parallel
	build/threads/checks

bench: install
	$(BIN)/recurra bench language
	$(BIN)/recurra bench cells --no-laws
	$(BIN)/recurra bench kernels
	$(BIN)/recurra bench seq2seq

docs: install
	$(BIN)/recurra bench cells --page docs/cells.md
	$(BIN)/python docs/gallery docs/gallery.html
