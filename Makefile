# Two commands are all that a fresh checkout needs, with nothing there but make and Python 3.11 or newer:
#
#   make demo       train a small model on the text that comes with pyro_seq, and show what it has learned
#   make test       lint, types, and the tests that a change is made with: minutes
#   make test-all   the same with every test: also those that kill, attack, learn, or vary much for long
#
# make docs builds the documentation into build/site, make dist the wheel and the source package into dist, and make test-lowest
# runs the tests with the lowest versions that setup.cfg promises.
#
# All set up .venv by themselves, which takes no time the second time. With another Python: make test PYTHON=python3.12

PYTHON  ?= python3
WORKERS ?= 2#   processes that share the tests; 0 runs them in this one
ARGS    ?=#     more arguments for pytest, or for pyroseq demo

WORKERS := $(strip $(WORKERS))
comma := ,
venv := .venv
python := $(venv)/bin/python
pip := $(python) -m pip install -qq --disable-pip-version-check -c constraints.txt

# An environment is as good as the files that it was made from, and belongs to the folder in which it was made.
key := $(shell { pwd; cat setup.cfg constraints.txt; } | cksum | cut -d ' ' -f 1)
installed := $(venv)/.installed-$(key)
installed_dev := $(venv)/.installed-dev-$(key)
installed_docs := $(venv)/.installed-docs-$(key)

version = $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0] + " " + "ok" * (sys.version_info[:2] >= (3, 11)))' 2>/dev/null)
refusal = pyro_seq needs Python 3.11 or newer, and $(PYTHON) is $(or $(strip $(version)),not there): name another one, PYTHON=python3.12

.PHONY: demo test test-all test-lowest tests lint types docs screenshots dist bench clean

demo: $(installed)
	@$(venv)/bin/pyroseq demo $(ARGS)

test: chosen := -m "not slow"
test test-all: $(installed_dev) lint
	@$(MAKE) --no-print-directory -j 2 types tests chosen='$(chosen)'

# -P keeps this folder off sys.path, where models, guides and cli would be packages of their own.
# All tests of a file run in one process, so that what they share is trained once.
tests: $(installed_dev)
	@$(python) -P -m pytest -n $(WORKERS) --dist loadfile $(chosen) $(ARGS)

lint: $(installed_dev)
	@$(python) -m ruff check --quiet .
	@$(python) -m ruff format --quiet --check .

types: $(installed_dev)
	@$(python) tools/typecheck.py

# Warnings are errors. Notebooks run once, and again when they or the package change.
docs: $(installed_docs)
	@$(python) -P -m sphinx --fail-on-warning --keep-going --quiet -d build/doctrees docs build/site
	@$(python) -P tools/check_site.py build/site

screenshots: docs
	@$(python) -P tools/screenshots.py build/site build/screenshots

# In an environment of its own, into which only what a user installs goes, without constraints.
dist: $(installed_dev)
	@rm -rf dist build/lib build/bdist.* build/clean && mkdir -p build
	@$(python) -m build --no-isolation --outdir dist . > build/dist.log 2>&1 || { cat build/dist.log; exit 1; }
	@$(python) -m twine check --strict dist/*
	@$(PYTHON) -m venv build/clean
	@build/clean/bin/python -m pip install -qq --disable-pip-version-check dist/*.whl
	@cd build && clean/bin/pyroseq demo --minutes 0.1 --run-dir clean/demo

test-lowest:
	@rm -rf build/lowest && $(PYTHON) -m venv build/lowest
	@build/lowest/bin/python -m pip install -qq --disable-pip-version-check -c constraints-lowest.txt --editable ".[dev]"
	@build/lowest/bin/python -P -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

bench: $(installed)
	@for script in $(filter-out benchmarks/common.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(python) $$script || exit 1; done

clean:
	rm -rf .venv build dist pyro_seq.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build takes setuptools from the environment, which torch needs anyway: no second one is fetched, and constraints.txt holds
# for it too, whatever the version of pip.
define environment
@$(if $(filter ok,$(version)),,$(error $(refusal)))echo "Setting up $(venv) for $(1); the first time, torch alone takes minutes to fetch"
@$(PYTHON) -m venv $(venv)
@rm -f $(venv)/.installed-*
@$(pip) setuptools
@$(pip) --no-build-isolation --editable "$(2)"
endef

$(installed):
	$(call environment,pyroseq,.)
	@touch $@

$(installed_dev):
	$(call environment,pyroseq and its tests,.[dev])
	@touch $@ $(installed)

$(installed_docs):
	$(call environment,pyroseq and its documentation,.[dev$(comma)docs])
	@touch $@ $(installed_dev) $(installed)
