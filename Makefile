# Everything a checkout needs. Each command sets up its own environment first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
BENCH := .venv/bench
RUN := $(BIN)/python -m vrnn_lab.run

.PHONY: help demo train sweep search report board test stress browser check bench wheel clean

help: ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

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

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest

stress: $(STAMP) ## the long tests of docs/reliability.md; ARGS="-k fuzz" for some
	$(BIN)/python -m pytest -n 0 -m stress $(ARGS)

browser: ## Chromium, in which the tests look at the report's page (Debian, as root)
	command -v chromium || (apt-get update -qq && apt-get install -y -qq chromium > /dev/null)

check: $(STAMP) ## format, lint, layers, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python -m pytest

bench: $(BENCH) ## timings: make bench, or ARGS="solve vrnn threads=1" for some
	$(BIN)/python -m bench $(ARGS)

wheel: $(STAMP) ## dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## the environment and what tools left
	rm -rf .venv dist build .pytest_cache .ruff_cache
