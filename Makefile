# Every target installs what it needs. Variables: PYTHON=python3.12 (interpreter), TORCH_INDEX=<url> (package index for
# torch, to choose a CPU build or another CUDA build), JOBS=4 (parallel tests), ARGS="--num_layers 4" (for train.py).
PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
READY := .venv/.ready

# a CUDA build of torch installs the triton it was built for; a CPU build installs none
TRITON := triton==3.9.0; platform_system == 'Linux'

.PHONY: install train pretrain test test-oldest test-newest test-adapters lint faults bench resources tune docs clean

install: $(READY)

# torch is installed first and alone, so that no other package's requirements choose its build
$(READY): setup.py pyproject.toml constraints.txt requirements-embedded.txt
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -c "import triton" 2>/dev/null || $(PIP) "$(TRITON)"
	$(PIP) --constraint constraints.txt setuptools
	$(PIP) --constraint constraints.txt --no-build-isolation --editable ".[backtest,calendar,export,parquet,plot,tensorboard,test]"
	$(PIP) --no-deps --requirement requirements-embedded.txt
	touch $@

train: $(READY)
	$(BIN)/python train.py $(ARGS)

# pre-trains a forecaster for unseen series, in less than half an hour on a CPU (docs/pretraining.md)
pretrain: $(READY)
	$(BIN)/python examples/pretrain.py $(ARGS)

# one thread per process: JOBS processes run the tests in parallel
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses $(JOBS) --dist loadfile --timeout 600

# The fast tests with the oldest and the newest versions that setup.py allows of the packages whose private names we
# use. torch is the one in .venv.
OLDEST := transformers==5.4.0 accelerate==1.10.0 deepspeed==0.18.0
NEWEST := --upgrade transformers<6 accelerate<2 deepspeed<0.20
FAST := $(addprefix tests/,test_config.py test_saving.py test_parity.py test_modeling.py test_ablations.py \
	test_private_names.py test_settings.py backbone/test_twin.py backbone/test_attention.py backbone/test_loading.py \
	backbone/test_dequantised.py training/test_arguments.py training/test_averaging.py training/test_ds_configs.py \
	training/test_resumed_settings.py training/test_resuming.py)
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

# the libraries we have adapters for; some need an older pandas and datasets than .venv has
ADAPTERS := sktime==1.2.0 gluonts==0.17.0 fev==0.10.0 pandas<3 datasets<5 wandb

test-oldest test-newest test-adapters: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest --quiet --timeout 600 $(TESTS)

test-oldest test-newest: TESTS := $(FAST)
test-adapters: TESTS := $(addprefix tests/,$(addprefix adapters/test_,fev.py gift_eval.py gluonts.py sktime.py) \
	docs/test_neighbours.py training/test_wandb.py)

.venv-oldest/.ready: VERSIONS := $(OLDEST)
.venv-newest/.ready: VERSIONS := $(NEWEST)
.venv-adapters/.ready: VERSIONS := $(ADAPTERS)
.venv-oldest/.ready .venv-newest/.ready .venv-adapters/.ready: .venv-%/.ready: $(READY)
	$(PYTHON) -m venv .venv-$*
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES))')" > $$(.venv-$*/bin/python $(PACKAGES))/base.pth
	.venv-$*/bin/python -m pip install --constraint constraints.txt setuptools
	.venv-$*/bin/python -m pip install --no-build-isolation $(foreach version,$(VERSIONS),"$(version)")
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	git ls-files '*.md' | xargs $(BIN)/proselint check --config .proselintrc.json
	$(BIN)/mypy

# docs/reliability.md: kills trainings, damages files and feeds odd values for MINUTES minutes
faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/campaign.py --minutes $(or $(MINUTES),60) --each_event --write

# bench/results/<device>/: a CSV and a plot for every kernel
bench: $(READY)
	$(BIN)/python -m pytest bench --benchmark-only --out bench/results
	$(BIN)/python bench/plot.py

# kernels/RESOURCES.md: registers, spills and shared memory of every kernel on every target; needs no GPU
resources: $(READY)
	$(BIN)/python tools/compile_only.py --write

# kernels/configs.csv: the fastest launch configurations on this machine's GPU
tune: $(READY)
	$(BIN)/python bench/tune.py

# docs/_build/index.html: the manual, with an API reference from the docstrings; needs no network
docs: $(READY)
	$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || $(PIP) --constraint constraints.txt furo myst-parser sphinx
	$(BIN)/python -m sphinx --fail-on-warning -q -b html docs docs/_build

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-adapters docs/_build build dist llata_fast.egg-info .pytest_cache .ruff_cache .hypothesis \
		.benchmarks
