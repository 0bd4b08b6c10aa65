# Two commands on a machine that has Python, make and a package index:
#   make demo     a virtual environment, an installation, and the main job on text already here
#   make test     the same with the development extra, and every check
# Tests of the report's page need Chromium and skip without it: `make browser` installs Debian's.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
OUT ?= out

.PHONY: demo test check venv lint types fast wheel bench browser clean

demo: $(VENV)/.base
	$(BIN)/foresift run configs/demo.yaml --out $(OUT)/demo --json

test: lint types
	$(BIN)/python -m pytest -q --durations=15

check: lint types fast

venv: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy -p foresift

fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "not slow and not ray"

wheel: $(VENV)/.dev
	sh .ci/wheel $(BIN)/python

# make bench NAME=minhash ARGS=--smoke
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (torch first, so that one build of it serves all) ..."
	$(PIP) install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

# Debian's Chromium and its driver where they are absent and one may install them; never fails
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then \
	  echo "browser: there already"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { timeout 120 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 400 apt-get install -y -qq \
	    --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 \
	    && echo "browser: installed" || echo "browser: cannot be installed; its tests will skip"; \
	else \
	  echo "browser: absent (apt install chromium chromium-driver); its tests will skip"; \
	fi

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
