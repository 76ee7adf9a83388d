# Everything a checkout needs. Each command sets up its own environment first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
BENCH := .venv/bench
RUN := $(BIN)/python -m vrnn_lab.run

.PHONY: help docs demo train sweep search report board test test-all stress browser check check-lowest check-extras lock audit bench wheel clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

demo: $(STAMP) ## the main job: a latent ODE on spirals, about 3 minutes
	$(RUN) model=latent_ode optim=adamw

train: $(STAMP) ## any run: make train ARGS="model=vrnn data=ou"
	$(RUN) $(ARGS)

sweep: $(STAMP) ## any sweep: make sweep ARGS="model=rnn,vrnn optim=adam,adamw"
	$(RUN) -m $(ARGS)

search: $(STAMP) ## any search: make search ARGS="model=vrnn data=curves trials=40"
	$(BIN)/python -m vrnn_lab.search $(ARGS)

report: $(STAMP) ## runs compared: make report ARGS="outputs/tricks output=report.html"
	$(BIN)/python -m vrnn_lab.report $(ARGS)

board: $(STAMP) ## TensorBoard over outputs/
	$(BIN)/tensorboard --logdir outputs

test: $(STAMP) ## the fast tests
	$(BIN)/python -m pytest

test-all: $(STAMP) ## all tests: long fits, many processes, compilation and the browser too
	$(BIN)/python -m pytest -m 'not stress'

stress: $(STAMP) ## the long tests of docs/reliability.md; ARGS="-k fuzz" for some
	$(BIN)/python -m pytest -n 0 -m stress $(ARGS)

docs: $(STAMP) ## the documentation site, in build/site; python -m http.server -d build/site shows it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

browser: ## Chromium, in which the tests look at the report's page (Debian, as root)
	command -v chromium || (apt-get update -qq && apt-get install -y -qq chromium > /dev/null)

check: $(STAMP) ## format, lint, layers of imports, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

LOWEST := .venv-lowest/bin/python -m
FEW := config ode gaussian_head cells series table_formats report run figures

check-lowest: ## the oldest releases that are allowed, in an environment of their own: a part of the tests
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST) pip install --quiet --prefer-binary -c constraints-lowest.txt -e '.[parquet,gp,search]' \
		'pytest>=8' 'pytest-xdist>=3.6' 'hypothesis>=6.100'
	$(LOWEST) pytest -n 0 -W default -k 'not offset_has_seconds' $(FEW:%=tests/test_%.py)

check-extras: ## each extra alone, in an environment of its own, does what it is for; ARGS="gp ray" for some
	$(PYTHON) tests/helpers/extras.py $(ARGS)

EXTRAS := parquet large gp digits hopper search joblib submitit mlflow wandb

lock: ## requirements.lock: the newest allowed release of every dependency, with the hashes of its files
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--constraint constraints.txt $(EXTRAS:%=--extra %) --custom-compile-command 'make lock' \
		--output-file requirements.lock pyproject.toml

KNOWN := https://pypi.org/pypi/pip/24.0/json

audit: $(STAMP) ## known vulnerabilities of what is installed; skipped where PyPI's list cannot be reached
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(KNOWN)", timeout=10)' 2> /dev/null; then \
		$(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit && \
		.venv-audit/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"; \
	else echo "skipped: $(KNOWN) cannot be reached, so nothing is known of vulnerabilities"; fi

bench: $(BENCH) ## timings: make bench, or ARGS="solve vrnn threads=1" for some
	$(BIN)/python -m bench $(ARGS)

wheel: $(STAMP) ## dist/*.whl, and a check of what a package index shows of it
	$(BIN)/python -m build --wheel
	$(BIN)/twine check --strict dist/*.whl

clean: ## the environment and what tools left
	rm -rf .venv .venv-lowest .venv-lock .venv-audit dist build .pytest_cache .ruff_cache
