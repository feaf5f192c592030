# Commands for a machine with Python 3.11+ and pip:
#   make demo   install once into .venv, then compare stock SGLang with the extension
#   make check  install little into .venv-check, then lint, format, types and the tests that need no SGLang
#   make test   make check; install once into .venv, then run the tests that make check left out
#   make docs   build the documentation into site/
#   make coverage   what the tests of make check run of marconi_ext
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHECK := $(VENV)-check
DOCS := $(VENV)-docs
PIP := $(BIN)/python -m pip --disable-pip-version-check
MAMBA_SSM := mamba-ssm==2.3.2.post1
JOBS ?= 2
ARGS ?=
# Compiled once, outside the tree: the tests start Python some hundred times.
QUICK := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(abspath $(CHECK))/pycache

.PHONY: demo check test lint coverage docs clean

demo: $(VENV)/.engine
	$(BIN)/marconi demo $(ARGS)

check: $(CHECK)/.done
	$(CHECK)/bin/ruff check . && $(CHECK)/bin/ruff format --check .
	@echo "==> types, beside the tests"
	@$(CHECK)/bin/mypy >$(CHECK)/types.log 2>&1 & types=$$!; \
	$(QUICK) $(CHECK)/bin/python -m pytest -q -n $(JOBS) --dist worksteal; tests=$$?; \
	wait $$types; types=$$?; cat $(CHECK)/types.log; exit $$((tests ? tests : types))

# What make check has run isn't run again; each job has an engine of its own. pytest's 5: ARGS chose no test.
test: check $(VENV)/.test
	$(BIN)/python -m pytest -m "sglang and not engine" -n $(JOBS) --dist loadfile $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m engine -n $(JOBS) --dist loadfile $(ARGS) || [ $$? = 5 ]

# Of the part that needs no SGLang, by the tests of make check.
coverage: $(CHECK)/.done
	$(CHECK)/bin/python -m pip --disable-pip-version-check install -q --no-compile -e '.[coverage]'
	$(QUICK) $(CHECK)/bin/python -m pytest -q -n $(JOBS) --cov=marconi_ext --cov-report=term --cov-report=xml

# Into site/; index.html opens without a network, and without a server but for the search.
docs: $(DOCS)/.done
	$(DOCS)/bin/zensical build --clean --strict

lint: $(VENV)/.test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(BIN)/python $(CHECK)/bin/python $(DOCS)/bin/python:
	@echo "==> creating $(@:%/bin/python=%)"
	@$(PYTHON) -c 'import sys; sys.exit("marconi-ext needs Python 3.11 or later, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(@:%/bin/python=%) || { echo "python's venv module is missing: on Debian, apt-get install python3-venv"; exit 1; }

$(CHECK)/.done: $(CHECK)/bin/python setup.py
	@echo "==> installing the tools of make check (0.4 GB)"
	$(CHECK)/bin/python -m pip --disable-pip-version-check install -q --no-compile -e '.[check]'
	@touch $@

$(DOCS)/.done: $(DOCS)/bin/python setup.py
	$(DOCS)/bin/python -m pip --disable-pip-version-check install -q -e '.[docs]'
	@touch $@

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
	rm -rf $(VENV) $(CHECK) $(DOCS) .cache site build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
