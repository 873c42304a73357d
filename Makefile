# make run   the default configuration, end to end, and its report
# make check look at the screens of a configuration before anything is trained
# make test  every check: style, types, workflow, tests
# make help  what else there is

PYTHON ?= python3
CORES ?= all
CONFIG ?= config.yaml
DURATION ?= 600
BIN := .venv/bin
CONFIG_IS_THERE = test -f "$(CONFIG)" || \
  { echo "CONFIG=$(CONFIG): no such file (sought in $(CURDIR)). Copy config/own_screen.yaml."; exit 2; }
export PYTHONPATH :=

.DEFAULT_GOAL := help
.PHONY: help run check test test-quick test-slurm test-faults fuzz audit lint plan coverage schema docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

run: .venv/run.installed ## run the workflow (CONFIG=file.yaml, CORES=n), and say what it found
	@$(CONFIG_IS_THERE)
	$(BIN)/snakemake --cores $(CORES) --configfile "$(CONFIG)"

check: .venv/run.installed ## print what the screens are like, before training (CONFIG=file.yaml)
	@$(CONFIG_IS_THERE)
	$(BIN)/snakemake --cores $(CORES) check --configfile "$(CONFIG)" --max-jobs-per-timespan 100/1s

test: .venv/test.installed lint ## run every check and test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-quick: .venv/test.installed ## run the unit tests that are not slow (3 minutes on two cores)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  -m "not slow and not workflow and not slurm and not faults" tests/unit workflow/scripts/samsvae

test-slurm: .venv/test.installed ## run the workflow on a Slurm of its own (root and Debian; else skipped)
	$(BIN)/python -m pytest --numprocesses 0 -m slurm tests/slurm

test-faults: .venv/test.installed ## kill jobs fifty times, and fill disks; what comes out is the same (minutes)
	$(BIN)/python -m pytest --numprocesses 0 -m faults tests/faults tests/workflow

fuzz: .venv/test.installed ## try to break it with configurations and files (DURATION=seconds)
	SAMSVAE_FUZZ_SECONDS=$(DURATION) nice -n 19 $(BIN)/python -m pytest --numprocesses 0 -s tests/fuzz

audit: ## look the locked packages up among known vulnerabilities (network)
	test -x .venv/audit/bin/pip-audit || $(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit==2.10.1
	.venv/audit/bin/pip-audit --requirement envs/requirements.txt --no-deps --disable-pip

lint: .venv/test.installed ## check style, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check --compact-diff Snakefile workflow/rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint
	$(BIN)/hadolint envs/Dockerfile

plan: .venv/run.installed ## plan every configuration that is shipped, without its data
	for config in config.yaml $(filter-out config/own_screen.yaml,$(wildcard config/*.yaml)); do \
	  $(BIN)/snakemake --dry-run --quiet --cores 1 --configfile $$config || exit 1; done

coverage: .venv/test.installed ## name the lines of the library that no unit test reaches
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit workflow/scripts/samsvae \
	  --cov --cov-report term-missing:skip-covered

schema: .venv/run.installed ## write the schema of the configuration from its classes
	PYTHONPATH=workflow/scripts $(BIN)/python -m samsvae.config.sections \
	  > workflow/schemas/config.schema.yaml

docs: .venv/test.installed ## write the documentation to site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation: site/index.html"

clean: ## remove the environment and what Snakemake keeps (results stay)
	rm -rf .venv .snakemake

.venv/run.installed: envs/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement envs/requirements.txt
	touch $@

.venv/test.installed: .venv/run.installed envs/requirements-dev.txt
	$(BIN)/pip install --quiet --requirement envs/requirements-dev.txt
	touch $@
