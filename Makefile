# The one place that says how this project is set up, tested and shown. Needs Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait without spinning: on a busy machine two spinning ones are slower than one.
export OMP_WAIT_POLICY ?= PASSIVE
# pip's own setting for local wheels holds for the faster installer too.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: setup demo test test-workers test-lm-eval test-engines test-engines-quick engines lint bench clean

setup: $(VENV)/ready

$(VENV)/ready: requirements.lock pyproject.toml
	@echo "making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9
	@$(BIN)/uv pip install --quiet --python $(BIN)/python torch==2.13.0
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes --no-deps -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup
	@$(BIN)/aftershock study demo --out demo

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-workers: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m workers

# lm-evaluation-harness brings some thirty packages: an environment of their own, on top of the other one.
test-lm-eval: $(VENV)-lm-eval/ready
	HF_HUB_OFFLINE=1 $(VENV)-lm-eval/bin/python -m pytest tests/tasks/test_harness.py tests/study/test_harness_tasks.py

$(VENV)-lm-eval/ready: $(VENV)/ready
	@$(PYTHON) -m venv $(VENV)-lm-eval
	@$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> "$$($(VENV)-lm-eval/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	@$(VENV)-lm-eval/bin/pip install --quiet --disable-pip-version-check lm-eval==0.4.13
	@touch $@

# Engines to capture, each in an environment of its own, as they want different versions of the same packages.
ENGINES := $(or $(AFTERSHOCK_ENGINES),$(HOME)/.cache/aftershock/engines)
# llama.cpp is compiled without the machine's newest instructions: with them (AMX) it crashes on some.
LLAMA_CPP := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
	-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF $(LLAMA_CPP_OPTIONS)

engines: engines-vllm engines-onnxruntime engines-llamacpp engines-openvino

engines-%: $(ENGINES)/%/ready ;

.PRECIOUS: $(ENGINES)/%/ready
$(ENGINES)/%/ready: engines/%.txt engines/overrides.txt | $(VENV)/ready
	@echo "making the environment of $* in $(ENGINES)"
	@$(PYTHON) -m venv $(ENGINES)/$*
	@CMAKE_ARGS="$(LLAMA_CPP)" $(BIN)/uv pip install --quiet --python $(ENGINES)/$*/bin/python --compile-bytecode \
		--override engines/overrides.txt -r $<
	@touch $@

test-engines: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m engines -rs

# The two of them that the gate runs: a minute and a half.
test-engines-quick: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m engines -rs \
		-k "computes_what_transformers_does and (vllm or onnxruntime)"

lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.independent_check --json
	$(BIN)/python -m benchmarks.overhead --json

clean:
	rm -rf $(VENV) $(VENV)-lm-eval demo build dist
