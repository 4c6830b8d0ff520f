# The few things one does with this checkout. `make run` and `make test` set up what they need.

HOME_DIR := $(shell tools/setup where)
BIN := $(HOME_DIR)/venv/bin
WORKERS ?= 4

.PHONY: run hello test corpus corpus-reference soak style types bench setup peers lock

run: setup  ## a mail server on 127.0.0.1:2525, in the foreground
	@exec tools/run

hello: setup  ## send that server a first message and show it as delivered
	@$(BIN)/python tools/hello

test: setup peers style types  ## everything that must pass
	@export PATH="$(BIN):$$PATH" PILLARBOX_HOME="$(HOME_DIR)"; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST); status=$$?; [ $$status = 1 ] || exit $$status; \
	echo "What failed beside other tests is run once more, one at a time; what fails again has failed."; \
	$(BIN)/python -m pytest -n 1 --last-failed $(PYTEST)

corpus: setup  ## recorded behaviour: make corpus [DIR=folder] [KIND=dialog] [K=text] [WIRING=one|many]
	@PILLARBOX_HOME="$(HOME_DIR)" $(BIN)/python -m tests.corpus.runner \
	    $(if $(DIR),--dir "$(DIR)") $(if $(KIND),--kind "$(KIND)") $(if $(K),-k "$(K)") $(if $(WIRING),--wiring "$(WIRING)")

corpus-reference: setup peers  ## the same dialogues against Debian's OpenSMTPD: [DIR=folder] [K=text] [RECORD=file]
	@PILLARBOX_HOME="$(HOME_DIR)" $(BIN)/python -m tests.corpus.runner --reference \
	    $(if $(DIR),--dir "$(DIR)") $(if $(K),-k "$(K)") $(if $(RECORD),--record "$(RECORD)")

soak: setup peers  ## the long tests, and honest mail beside 200 clients that misbehave, for half an hour: make soak [SOAK="--minutes 5 --wiring one"]
	@export PATH="$(BIN):$$PATH" PILLARBOX_HOME="$(HOME_DIR)"; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m long && $(BIN)/python -m tests.soak $(SOAK)

style: setup
	@$(BIN)/ruff check -q && $(BIN)/ruff format -q --check && echo "style: ok"

types: setup
	@$(BIN)/mypy --no-error-summary && echo "types: ok"

bench: setup peers  ## Pillarbox, Postfix and OpenSMTPD side by side (BENCH="--quick" and more: bench/README.md)
	@PILLARBOX_HOME="$(HOME_DIR)" $(BIN)/python -m bench $(BENCH)

setup:
	@tools/setup python

peers:
	@tools/setup peers

LOCK_QUIET := --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

lock:  ## write requirements.lock and requirements-ldap.lock anew from pyproject.toml
	@$(BIN)/python -m venv --clear "$(HOME_DIR)/lock" && "$(HOME_DIR)/lock/bin/pip" install -q pip-tools
	@"$(HOME_DIR)/lock/bin/pip-compile" -q --generate-hashes --allow-unsafe --strip-extras --extra dev --extra postgres --extra mysql --extra redis \
	    $(LOCK_QUIET) -o requirements.lock pyproject.toml
	@"$(BIN)/python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ldap"])' \
	    | "$(HOME_DIR)/lock/bin/pip-compile" -q --generate-hashes --strip-extras -c requirements.lock $(LOCK_QUIET) -o requirements-ldap.lock -
	@rm -rf "$(HOME_DIR)/lock"
