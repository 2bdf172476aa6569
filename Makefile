# The book's commands. `make` alone lists them: a target's line comes from its `##`, a variable's from the `#:` above it.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

#: name of the run, a folder under RESULTS (default: the target's own)
RUN :=
#: scale: a parameter file, toy (minutes on two cores) or paper
PROFILE := toy
#: processes on this machine, one a GPU
GPUS := 1
#: machines
NODES := 1
#: random seed
SEED := 0
#: where run folders go
RESULTS := results
#: interpreter that builds .venv, Python 3.11 to 3.13 (default: the first found)
PYTHON ?=
#: any pip specification in place of the pinned Detectron2; `pinned` goes back
DETECTRON2 ?=
#: passed on by `make test` to pytest, by `make lab` to JupyterLab
ARGS :=

# ---------------------------------------------------------------------------------------------------------- environment
# The active virtual or conda environment if there is one, else .venv. Conda's base is nobody's project: never that one.
ENV := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)),.venv)
# Our own .venv, activated, is the same environment under a longer name.
ENV := $(if $(filter $(CURDIR)/.venv,$(ENV)),.venv,$(ENV))
$(if $(word 2,$(ENV)),$(error the active environment's path has a space ($(ENV)): deactivate it, and .venv is used))
PY := $(ENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# A kernel of the same name in the user's home must not stand in for this environment's.
export JUPYTER_PREFER_ENV_PATH := 1

# The stamp lies inside the environment and holds what was set up: the checkout's path, then which Detectron2.
# Rules name it ORDER-ONLY (`product: inputs | $(READY)`), so that no product is made again merely because it is newer.
READY := $(ENV)/.soco-ready
PINNED := soco_lib/detectron2.txt
# Unless one is asked for, the Detectron2 that was set up stays.
WANTED := $(or $(strip $(DETECTRON2)),$(shell sed -n 2p '$(READY)' 2>/dev/null),pinned)
CHANGED := $(shell printf '%s\n' '$(CURDIR)' '$(WANTED)' | cmp -s - '$(READY)' || echo changed)

.PHONY: help setup lab test clean changed

help: ## this list
	@echo "make TARGET [VARIABLE=value]..."
	@awk '/^[a-z][a-z0-9-]*:.*## / { name = $$1; sub(/:.*/, "", name); sub(/.*## /, ""); printf "  %-22s %s\n", name, $$0 }' $(firstword $(MAKEFILE_LIST))
	@awk '/^#: / { text = substr($$0, 4); getline; value = $$3; printf "  %-22s %s\n", $$1 "=" value, text }' $(firstword $(MAKEFILE_LIST))

setup: | $(READY) ## build .venv, or fill the active environment: dependencies, Detectron2 (every target does this first)
	@echo "$(ENV) is ready"

$(READY): pyproject.toml $(PINNED) $(CHANGED) | $(PY)
	@echo "setting up $(ENV): some minutes the first time"
	@rm -f $@ # a set-up that stops half-way is not ready, whatever it was before
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PIP) install -q -e '.[test]'
ifeq ($(WANTED),pinned)
	@pin=$$(grep -o '^[^# ]*==[^ ]*' $(PINNED)); $(PIP) freeze --all | grep -xF "$$pin" >/dev/null || { \
	    $(PIP) uninstall -qq -y detectron2 sal-detectron2; \
	    $(PIP) install -q --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" \
	        --no-deps --only-binary=:all: --python-version 3.10 --platform linux_x86_64 --require-hashes -r $(PINNED); }
else
	@$(PIP) uninstall -qq -y detectron2 sal-detectron2
	@$(PIP) install -q --no-build-isolation '$(WANTED)'
endif
	@said=$$($(PY) -W ignore -c 'import torch, cv2, detectron2' 2>&1) || { \
	    case "$$said" in \
	        *libGL*|*libgthread*) remedy="another OpenCV shadows the headless one; pip uninstall opencv-python opencv-contrib-python, then make setup (or install libgl1 and libglib2.0-0)";; \
	        *detectron2*) remedy="try the pinned Detectron2, make setup DETECTRON2=pinned";; \
	        *) remedy="remove $(ENV) and run make setup again";; \
	    esac; echo "setup: $$(tail -n 1 <<<"$$said"): $$remedy" >&2; exit 1; }
	@printf '%s\n' '$(CURDIR)' '$(WANTED)' > $@

.venv/bin/python:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	        exec $$python -m venv --clear .venv; \
	    fi; \
	done; echo "setup: $(or $(PYTHON),no python3 on the PATH) is not Python 3.11 to 3.13: make setup PYTHON=/path/to/python3.11" >&2; exit 1

ifneq ($(ENV),.venv)
$(PY):
	@echo "setup: the active environment $(ENV) has no bin/python: deactivate it (then .venv is used) or activate another" >&2; exit 1
endif

lab: | $(READY) ## open JupyterLab on notebooks/
	@PATH="$(abspath $(ENV))/bin:$$PATH" $(PY) -m jupyterlab --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/notebooks $(ARGS)

# ----------------------------------------------------------------------------------------------------------- pipeline
# (the book's steps: each product is made from its inputs, `| $(READY)`)

# -------------------------------------------------------------------------------------------------------------- checks
test: | $(READY) ## run the tests; ARGS='-k boxes' chooses among them
	@$(PY) -m pytest $(ARGS)

clean: ## remove caches; results and the environment stay
	@find . \( -path ./.venv -o -path ./.git -o -path ./data \) -prune -o -type d \
	    \( -name __pycache__ -o -name .pytest_cache -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
