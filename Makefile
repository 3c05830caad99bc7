# Four commands: make demo, make test, make lint, make docs. Each makes the environment in .venv first
# where it is missing or older than the files that say what it holds; what only tests, lint and docs
# need (Apache Beam, torch, MkDocs) is added by the first of them.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_TESTS := $(VENV)/.installed_tests
# Python compiles a module where it is first imported; all modules together take pip minutes.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e
PYTEST_FLAGS ?= -n 2 --dist worksteal

.PHONY: demo test test-fast lint docs clean

demo: $(INSTALLED)
	$(BIN)/instructrec demo
	@echo "For the command instructrec in this shell: source $(BIN)/activate"

test: $(INSTALLED_TESTS)
	$(BIN)/pytest $(PYTEST_FLAGS)

test-fast: $(INSTALLED_TESTS)
	$(BIN)/pytest $(PYTEST_FLAGS) -m "not slow and not parity and not real_data"

lint: $(INSTALLED_TESTS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The variable silences an advertisement of the theme's makers.
docs: $(INSTALLED_TESTS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the handbook: site/index.html"

clean:
	rm -rf $(VENV) build dist site *.egg-info runs .pytest_cache

$(BIN)/pip:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python3 is older than 3.11; install Python 3.11 or later"; exit 1; }
	@python3 -m venv $(VENV) || \
	  { echo "python3 has no venv module; install it (on Debian: apt-get install python3-venv)"; exit 1; }

$(INSTALLED): pyproject.toml setup.py constraints.txt | $(BIN)/pip
	$(INSTALL) .
	@touch $(INSTALLED)

$(INSTALLED_TESTS): pyproject.toml setup.py constraints.txt | $(BIN)/pip
	$(INSTALL) '.[test,beam,parity,serve,qdrant,postgres,docs]'
	@touch $(INSTALLED) $(INSTALLED_TESTS)
