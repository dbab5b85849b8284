# `make help` lists what there is. What takes more than a line is a script in deploy/.
.DEFAULT_GOAL := help
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
VENV_STAMP := .venv/.requirements-installed
# What `make bench` compares with, apart from what the project stands on.
BENCH_STAMP := .venv-bench/.requirements-installed
# For every Python that we support, and naming no index: that is each machine's own.
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header
UNIT := not component and not integration and not faults and not failpoints and not mutations
# Further arguments for pytest: make test-unit ARGS='-k cron'
ARGS :=

##@ Try and run
.PHONY: demo up down clean logs scale dead-letters

demo: ## Bring everything up, run a few tasks as a new user and show what they print
	@deploy/up.sh
	@python3 -m deploy.demo

up: ## Start the system, from a bare machine if need be; print its address and the admin's login
	@deploy/up.sh
	@python3 -m deploy.show_login

down: ## Stop the system; data and running tasks' containers stay
	@deploy/compose.sh down --remove-orphans

clean: ## Stop the system and delete its data and its tasks' containers
	@deploy/clean.sh

logs: ## Follow the logs of all services
	@deploy/compose.sh logs --follow --tail=100

scale: ## Run N executors: make scale N=3
	@deploy/scale.sh "$(N)"

dead-letters: ## Show the messages that nobody could read; REPLAY=1 puts them back onto the queue
	@deploy/compose.sh exec -T scheduler-loops python -m libs.common.dead_letters $(if $(REPLAY),--replay)

##@ Prepare
.PHONY: build docker-pull env keys

build: ## Make the images: what the stack stands on, and the app
	@deploy/engine.sh
	@deploy/images.sh
	@deploy/build.sh

docker-pull: ## Fetch the official images anew, where a registry is in reach
	@deploy/engine.sh
	@deploy/images.sh --pull

env: ## Write deploy/.env with random passwords, once
	@[ -f deploy/.env ] || python3 -m deploy.recovery $${COMPOSE_PROJECT_NAME:-task-runner} deploy/.env 2>/dev/null || true
	@python3 -m deploy.environment deploy/.env

keys: ## Make a signing key: make keys KID=2027-01
	@deploy/make_key.sh "$(KID)"

##@ Change
.PHONY: test test-unit test-component test-integration faults soak failpoints mutations lint check ci tidy bench \
  bench-scale requirements

test: $(VENV_STAMP) ## Run all tests, against real servers and a composed system of their own
	@deploy/with_test_stack.sh $(BIN)/pytest --numprocesses 2 libs services deploy tests $(ARGS)

test-unit: $(VENV_STAMP) ## Run the tests that need nothing: seconds
	@$(BIN)/pytest --numprocesses 2 libs services deploy tests -m '$(UNIT)' $(ARGS)

test-component: $(VENV_STAMP) ## Run the tests against real servers in containers
	@deploy/engine.sh
	@deploy/images.sh
	@deploy/build.sh
	@$(BIN)/pytest libs services deploy tests -m component $(ARGS)

test-integration: $(VENV_STAMP) ## Run the tests that go through the gateway of a composed system
	@deploy/with_test_stack.sh $(BIN)/pytest tests -m integration $(ARGS)

faults: $(VENV_STAMP) ## Kill, cut off and restart everything under load, and see that no promise breaks: 8 minutes
	@deploy/engine.sh
	@deploy/images.sh task-runner/engine:local
	@TEST_PROJECT=task-runner-faults TEST_PORT=18100 COMPOSE_ALSO=tests/faults/compose.yml deploy/with_test_stack.sh \
	  $(BIN)/pytest tests/faults -m faults --capture=no $(ARGS)

soak: ## A storm of half an hour; FAULTS_SECONDS, FAULTS_KILLS, FAULTS_TASKS, FAULTS_SEED say how much of what
	@FAULTS_SECONDS=$(or $(FAULTS_SECONDS),1450) FAULTS_KILLS=$(or $(FAULTS_KILLS),300) \
	  FAULTS_TASKS=$(or $(FAULTS_TASKS),3000) FAULTS_REPORT=$(or $(FAULTS_REPORT),docs/soak-report.md) \
	  $(MAKE) faults ARGS='-k test_storm $(ARGS)'

failpoints: $(VENV_STAMP) ## Kill, freeze and cut off each part at each named point in the code; REPEAT=5 times each
	@deploy/engine.sh
	@deploy/images.sh
	@deploy/build.sh
	@FAILPOINTS_REPEAT=$(or $(REPEAT),1) $(BIN)/pytest tests/faults/test_failpoints.py -m failpoints \
	  --capture=no $(ARGS)

mutations: $(VENV_STAMP) ## Switch each safety rule off in turn, and see that the tests notice
	@deploy/engine.sh
	@deploy/images.sh
	@deploy/build.sh
	@$(BIN)/pytest tests/faults/test_mutations.py -m mutations $(ARGS)

lint: $(VENV_STAMP) ## Check style, types, import rules and shell scripts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@deploy/lint_shell.sh

check: lint test ## What to run before handing in: lint and test

ci: check faults ## What CI runs: lint, test, and the storm

tidy: $(VENV_STAMP) ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV_STAMP) $(BENCH_STAMP) ## Measure a system of its own against bare loops, backlogs, and Celery
	@deploy/with_test_stack.sh bash -c '$(BIN)/python -m bench && $(BIN)/python -m bench.backlog'
	@TEST_SETTINGS=LOG_LEVEL=warning deploy/with_test_stack.sh $(BIN)/python -m bench.pipeline

bench-scale: $(VENV_STAMP) ## Measure a system with 6,000,000 tasks against the same one when it was empty
	@deploy/with_test_stack.sh $(BIN)/python -m bench.scale

requirements: $(VENV_STAMP) ## Compile requirements/*.in into hashed requirements/*.txt
	@cd requirements && ../$(BIN)/uv $(COMPILE) runtime.in --output-file runtime.txt
	@cd requirements && ../$(BIN)/uv $(COMPILE) dev.in --constraint runtime.txt --output-file dev.txt
	@cd requirements && ../$(BIN)/uv $(COMPILE) bench.in --output-file bench.txt

$(VENV_STAMP): requirements/dev.txt
	@deploy/venv.sh
	@touch $@

$(BENCH_STAMP): requirements/bench.txt $(VENV_STAMP)
	@$(BIN)/python -m venv .venv-bench
	@.venv-bench/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/bench.txt
	@touch $@

##@ Help
.PHONY: help

help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
