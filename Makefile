# `make demo` and `make test` do all the set-up themselves, on a machine with Python 3.10 or newer, Rust, a C compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
DEMO_STEPS ?= 5000
# Where PyTorch without CUDA is, for machines without a GPU; empty: take what PyPI has.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# What tests compare the sequence models with: without its CUDA code, and apart, as transformers would try to use it.
REFERENCE := mamba-ssm==2.3.2.post1 einops==0.8.2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

.PHONY: help demo test test-rust test-signals test-python test-slow test-cluster lint format bench docs build wheel release-check clean

help:
	@echo "make demo    set up, train on Pong for a few minutes, evaluate, dream"
	@echo "make test    set up, then the Rust and the Python tests"
	@echo "make lint    ruff, mypy, stubtest, cargo fmt, clippy"
	@echo "make format  format Python and Rust"
	@echo "make bench   the benchmarks"
	@echo "make docs    the pages as a site in target/site"
	@echo "make wheel   an abi3 wheel in dist/"
	@echo "make release-check  sources and wheel built, installed on every Python here and tested (RELEASE.md)"

# Each stamp is a step of the set-up; it runs again when what it depends on has changed.
$(VENV)/.created:
	@$(PYTHON) scripts/check_tools.py
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "on Debian, apt-get install python3-venv brings what is missing"; exit 1; }
	@$(PIP) --upgrade 'pip>=25.1' 'maturin>=1.8,<2'
	@touch $@

$(VENV)/.built: $(VENV)/.created pyproject.toml requirements.lock $(RUST_SOURCES)
	@$(PYTHON) scripts/check_tools.py
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python scripts/cpu_torch.py
	@echo "building the extension in release mode, installing what training needs"
	@$(PIP) --editable '.[train]' --constraint requirements.lock
	@touch $@

$(VENV)/.dev: $(VENV)/.built
	@echo "installing what tests and lints need"
	@$(PIP) --group test --group lint --group examples --constraint requirements.lock
	@$(PIP) setuptools wheel packaging
	@MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(PIP) --no-build-isolation --no-deps --upgrade \
		--target $(VENV)/reference $(REFERENCE)
	@touch $@

build: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/drama train Pong --preset cpu --steps $(DEMO_STEPS) --train.agent-start 2500 --run $(RUN)

test: test-rust test-python

test-rust:
	@$(PYTHON) scripts/check_tools.py
	cargo test --release --quiet

# Every order in which processes can signal each other, which takes a build of its own.
test-signals:
	RUSTFLAGS="--cfg loom" cargo test --release --quiet --package drama-core --lib --target-dir target/loom signal

test-python: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow and not cluster'

# A quarter of an hour of starting and killing Ray, which wants a machine to itself.
test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest -m cluster

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest drama._native
	cargo fmt --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	cargo fmt

bench: $(VENV)/.built
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/replay.py
	$(BIN)/python benchmarks/replay_compression.py
	$(BIN)/python benchmarks/envs.py

docs: $(VENV)/.dev
	@$(PIP) --group docs --constraint requirements.lock
	$(BIN)/python docs/gather.py
	$(BIN)/zensical build --strict --clean
	$(BIN)/python docs/links.py

wheel: $(VENV)/.created
	$(BIN)/maturin build --release --out dist

release-check: $(VENV)/.created
	@$(PIP) --group release
	@rm -rf target/release-check
	$(BIN)/python scripts/release.py --dist target/release-check

clean:
	rm -rf $(VENV) target dist
