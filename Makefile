# Everything goes through one environment, made once and again when its two files change.
#   make run     set-up and the main job: the tiny experiment, offline, on a CPU
#   make test    set-up and the tests
#   make help    the rest

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= cpu,qdrant,embed,lm-eval,mlflow,dev
BIN    := $(VENV)/bin
DEVICE ?= cpu
BENCHMARKS ?= tests/benchmarks
# A name keeps the seconds of the parts (tests/benchmarks/test_parts.py) as those that later runs are held against.
ACCEPT ?=
# Processes that run the tests; what a file's tests share is made once, so a file stays with one of them.
WORKERS ?= 2
comma  := ,
# What is worth most comes first: a run that is cut off keeps it.
GPU_SHAPE ?= --shape llama2-7b --device cuda --lengths 16384,4096,1024,32768,512,2048,8192,65536
GPU_OUT   ?= runs/latency-gpu
STAMP  := $(VENV)/.stamp-$(subst $(comma),-,$(EXTRAS))

export HF_HUB_OFFLINE ?= 1
# Of matrices as small as the tests' a second thread makes a slower test.
test slow docs-test cluster-short cluster-test: export OMP_NUM_THREADS ?= 1

.PHONY: setup run test check slow docs-test cluster-packages cluster-short cluster-test bench gpu help clean

help:
	@echo "make setup   the environment alone: .venv, with the command refrag-bench in it"
	@echo "make run     set up, then run the tiny experiment and draw results/ (minutes on 2 cores)"
	@echo "make test    set up, then run the tests"
	@echo "make check   ruff, mypy, import contracts"
	@echo "make slow    proofs that take minutes: kill -9 on the real command"
	@echo "make docs-test  every command in docs/ that needs nothing but this machine, the slow ones too (minutes)"
	@echo "make cluster-short  seven of the next in two minutes, as .ci/run does; make cluster-packages installs what it needs"
	@echo "make cluster-test   a real SLURM on this machine: arrays, requeues, preemption (Debian packages; no skip)"
	@echo "make bench   benchmarks: decode loop, lm-eval, training step, a million rows verified and drawn (DEVICE=cuda);"
	@echo "             seconds of the parts beside the last accepted ones (alone: BENCHMARKS=tests/benchmarks/test_parts.py;"
	@echo "             ACCEPT=NAME keeps these)"
	@echo "make gpu     the latency lab on one GPU, at most 9 minutes; no set-up: PYTHON's own torch and transformers"
	@echo "make clean   remove the environment and everything under runs/"
	@echo "variables    PYTHON=$(PYTHON)  VENV=$(VENV)  WORKERS=$(WORKERS)  EXTRAS=$(EXTRAS)  (EXTRAS=gpu,... and a VENV of its own for faiss-gpu)"

setup: $(STAMP)

run: $(STAMP)
	$(BIN)/refrag-bench run tiny

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(STAMP)
	$(BIN)/python -m pytest -q -s -m slow tests

docs-test: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_docs.py

cluster-packages: $(STAMP)
	@packages="$$($(BIN)/python -c 'from slurm.local_cluster.cluster import missing_packages as m; print(*set(m().values()))')" && \
	if [ -n "$$packages" ]; then echo "apt-get install $$packages" && apt-get -qq update && \
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$packages > /dev/null; fi

cluster-short: $(STAMP)
	$(BIN)/python -m pytest -q -m "cluster and short" tests

cluster-test: $(STAMP)
	$(BIN)/python -m pytest -q -s -m cluster tests

bench: $(STAMP)
	$(BIN)/python -m pytest -q -s $(BENCHMARKS) --device $(DEVICE) --benchmark-compare $(if $(ACCEPT),--benchmark-save=$(ACCEPT)) \
		--benchmark-storage=file://results/records/benchmarks --benchmark-columns=min,median,iqr,rounds

gpu:
	$(PYTHON) -m harness.cli.main latency $(GPU_SHAPE) --minutes 8 --rounds 5 --batches 1,8 --out $(GPU_OUT)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) runs
