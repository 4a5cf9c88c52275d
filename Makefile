# make demo: the closed loop.  make test: everything CI runs.  Both make .venv first; nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OBP_VERSION := 0.5.7
CACHE ?= .cache
export OPEN_BANDIT_ARCHIVE := $(CURDIR)/$(CACHE)/obp-$(OBP_VERSION).tar.gz

# Small matrices on two cores: a second BLAS thread costs more than it gives.
export OMP_NUM_THREADS := 1

# Tests start some hundred processes: let none of them compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow check format bench data picture clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev,bench]"
	@touch $@

# The Open Bandit Dataset's small release lies in a source archive on PyPI. It is read, never installed.
data: $(OPEN_BANDIT_ARCHIVE)

$(OPEN_BANDIT_ARCHIVE): | $(STAMP)
	@mkdir -p $(CACHE)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --ignore-requires-python \
		-d $(CACHE) obp==$(OBP_VERSION)

demo: $(STAMP)
	$(BIN)/steersman demo cartpole

test: $(STAMP) check data
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs -m "not slow"

test-slow: $(STAMP) data
	$(BIN)/python -m pytest -rs -s -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@for bench in benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done

bench-%: $(STAMP)
	$(BIN)/python benchmarks/bench_$*.py

# The picture in the README: needs a Chromium, which nothing else does.
CHROMIUM ?= chromium
picture: $(STAMP) data
	rm -rf build/picture
	$(BIN)/steersman demo open-bandit --directory build/picture
	$(CHROMIUM) --headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size=1060,1900 \
		--screenshot=$(CURDIR)/docs/report.png file://$(CURDIR)/build/picture/report.html
	$(BIN)/python -c 'from PIL import Image; Image.open("docs/report.png").convert("RGB").quantize(48).save("docs/report.png", optimize=True)'

clean:
	rm -rf .venv .cache build dist
