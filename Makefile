# Three commands: make demo, make test, make lint. Each makes the environment in .venv first
# where it is missing or older than the files that say what it holds.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST_FLAGS ?= -n 2 --dist loadfile

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/instructrec demo

test: $(INSTALLED)
	$(BIN)/pytest $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info runs

$(INSTALLED): setup.py constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python3 is older than 3.11; install Python 3.11 or later"; exit 1; }
	@python3 -m venv $(VENV) || \
	  { echo "python3 has no venv module; install it (on Debian: apt-get install python3-venv)"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,beam,parity]'
	@touch $(INSTALLED)
