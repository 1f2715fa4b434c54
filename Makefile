# make demo    install, and hear the fleet speak        make test     install, and run the tests
# make bench   the measurements                         make lint types clean
# make test-engine   install torch as well, and compare CosyVoice 2 with upstream's own modules
# make test-long     faults, every order of steps, soak, full size: what takes minutes each
# make audit   known vulnerabilities, and licences
# make bench-gpu     on a GPU machine: checks, then measures CosyVoice 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
ARGS ?=

.PHONY: demo test test-long test-engine lint types audit bench bench-gpu clean

demo: $(VENV)/installed
	$(BIN)/voicefleet demo $(ARGS)

# $(1): which tests, $(2): how. They wait more than they compute, so four share two cores; those that
# load the machine come one by one, after the others. That ARGS leaves none (5) is no failure.
define run_tests
	$(BIN)/pytest -n 4 --dist worksteal -m "$(1) and not alone" $(2) $(ARGS); shared=$$?; \
	$(BIN)/pytest -m "$(1) and alone" $(2) $(ARGS); alone=$$?; \
	case $$shared$$alone in 00|05|50) ;; *) exit 1; esac
endef

test: $(VENV)/installed-dev  # what needs torch is left to test-engine
	$(call run_tests,not long,--without-torch)

test-long: $(VENV)/installed-dev
	$(call run_tests,long)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

test-engine: $(VENV)/installed-engine
	$(BIN)/pytest tests/worker/engines/cosyvoice2 -n 2 --dist loadfile -m "not long" $(ARGS)

# torch and the others have types that the engine is checked against, matplotlib those of the plots.
types: $(VENV)/installed-engine $(VENV)/installed-bench
	$(BIN)/pyright

audit: $(VENV)/installed-audit  # of what is installed here: most after test-engine
	$(BIN)/python .ci/audit

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench $(ARGS)

bench-gpu: $(VENV)/installed-engine $(VENV)/installed-bench
	PYTHON=$(BIN)/python bench/gpu.sh all $(ARGS)

clean:
	rm -rf $(VENV) build dist demo.wav .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: each is newer than pyproject.toml once what it stands for is installed.

$(VENV)/created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed on the PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"  # the first that knows dependency groups
	touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/created
	$(PIP) --editable ".[embedded,piper]"
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/created
	$(PIP) --editable ".[embedded,piper]" --group test --group speech --group lint
	touch $@

# torch first, by this name: what satisfies it then is left alone. torchaudio comes from PyPI as a
# CUDA build; its own library cannot be loaded beside a CPU torch and is not needed.
$(VENV)/installed-engine: pyproject.toml | $(VENV)/installed-dev
	$(PIP) torch==2.13.0
	$(PIP) --no-deps torchaudio==2.11.0
	$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || \
		find $(VENV)/lib -path '*/torchaudio/lib/*.so' -delete
	$(PIP) --no-deps cosyvoice2-eu==0.2.8 conformer==0.3.2
	$(PIP) --editable ".[embedded,piper,cosyvoice]" --group test --group parity
	touch $@

$(VENV)/installed-audit: pyproject.toml | $(VENV)/installed-dev
	$(PIP) --group audit
	touch $@

$(VENV)/installed-bench: pyproject.toml | $(VENV)/created
	$(PIP) --editable ".[embedded,piper]" --group bench
	touch $@
