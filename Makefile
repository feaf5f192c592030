# Two commands do everything on a machine with Python 3.11+ and pip:
#   make demo   install once into .venv, then compare stock SGLang with the extension
#   make test   install once into .venv, then run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MAMBA_SSM := mamba-ssm==2.3.2.post1
ARGS ?=

.PHONY: demo test lint clean

demo: $(VENV)/.engine
	$(BIN)/marconi demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(BIN)/python:
	@echo "==> creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("marconi-ext needs Python 3.11 or later, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing: on Debian, apt-get install python3-venv"; exit 1; }

$(VENV)/.engine: $(BIN)/python setup.py
	@echo "==> installing SGLang and the extension (about 11 GB, a few minutes the first time)"
	$(PIP) install -q -e '.[sglang]'
	@touch $@

# Without the first variable mamba-ssm's build tries to download a CUDA wheel; its pure files are our oracle.
$(VENV)/.test: $(VENV)/.engine setup.py
	@echo "==> installing the test tools"
	$(PIP) install -q -e '.[test]' setuptools wheel packaging ninja
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(PIP) install -q --no-deps --no-build-isolation $(MAMBA_SSM)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
