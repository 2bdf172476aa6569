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
#: pictures to pretrain on: folder:PATH, coco:JSON, voc:ROOT, zip:FILE, list:FILE (default: the parameter file's)
IMAGES :=
#: folder of their proposals (default: data/<name of the pictures>-proposals)
PROPOSALS :=
#: what a transfer starts from: a pretraining's run folder, a checkpoint, or scratch
INIT := scratch
#: training and test data of a transfer, coco:JSON@IMAGES (default: the parameter file's)
TRAIN :=
TEST :=
#: transfer runs of a report, by name (default: the quickstart's)
RUNS :=
#: other settings of a pretraining or transfer, such as SET='k: 8, steps: 200'
SET :=
#: host:port that all nodes reach, for NODES > 1
RENDEZVOUS :=
#: times that torchrun starts all processes anew after one died
RESTARTS := 0
#: local, or slurm
LAUNCHER := local
#: of SLURM, with MINUTES a job (requeued, it goes on) and CPUS cores a node
PARTITION :=
MINUTES := 240
CPUS := 0
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
# A notebook's product is its HTML: it is rendered last and put in place by a rename, so it stands for the whole run.
BOOK := $(PY) -m soco_lib.book
NB := notebooks
SCENES := data/scenes
.PHONY: data proposals views pretrain join transfer report quickstart gallery probe

$(SCENES)/scenes.json: | $(READY)
	@$(PY) -m soco_lib.scenes --out $(SCENES) --train 400 --val 100

data: $(SCENES)/scenes.json ## draw the embedded scenes (data/scenes, COCO layout)

# The toy profile's data are the scenes, unless others are named.
TOY_DATA := $(if $(filter toy,$(PROFILE)),$(SCENES)/scenes.json)
PICTURES := $(or $(IMAGES),$(if $(filter toy,$(PROFILE)),coco:$(SCENES)/annotations/instances_train.json,folder:imagenet/train))
# data/scenes-proposals for the scenes, else by the last part of the path: folder:photos/cats -> data/cats-proposals
STORE := $(or $(PROPOSALS),data/$(if $(findstring $(SCENES)/,$(PICTURES)),scenes,$(basename $(notdir $(lastword $(subst :, ,$(firstword $(subst @, ,$(PICTURES))))))))-proposals)
DATA_FLAGS = -p images '$(PICTURES)' -p proposals '$(STORE)'
LAUNCH_FLAGS = -p seed $(SEED) -p gpus $(GPUS) -p nodes $(NODES) -p rendezvous '$(RENDEZVOUS)' -p restarts $(RESTARTS) \
    -p launcher $(LAUNCHER) -p partition '$(PARTITION)' -p minutes $(MINUTES) -p cpus $(CPUS) -p overrides '{$(SET)}'

proposals: $(TOY_DATA) | $(READY) ## proposals of IMAGES, and a look at them
	@$(BOOK) $(NB)/01_proposals.ipynb --results $(RESULTS) --run-name $(or $(RUN),$(notdir $(STORE))) $(DATA_FLAGS)

views: $(TOY_DATA) | $(READY) ## the views that pretraining sees of IMAGES
	@$(PY) -m soco_lib.store --images '$(PICTURES)' --out '$(STORE)'
	@$(BOOK) $(NB)/02_views.ipynb --results $(RESULTS) --run-name $(or $(RUN),views-$(PROFILE)) $(DATA_FLAGS) \
	    -p config $(NB)/params/pretrain-$(PROFILE).yaml

pretrain: $(TOY_DATA) | $(READY) ## pretrain on IMAGES with GPUS x NODES processes; goes on where it was interrupted
	@$(PY) -m soco_lib.store --images '$(PICTURES)' --out '$(STORE)'
	@$(BOOK) $(NB)/03_pretrain.ipynb --results $(RESULTS) --run-name $(or $(RUN),pretrain-$(PROFILE)) $(DATA_FLAGS) \
	    $(LAUNCH_FLAGS) -p config $(NB)/params/pretrain-$(PROFILE).yaml

join: | $(READY) ## on every other node: this node's part of the run RUN (NODES, GPUS, RENDEZVOUS as on the first)
	@$(PY) -m soco_lib.launch join $(RESULTS)/$(RUN) --gpus $(GPUS) --nodes $(NODES) --rendezvous '$(RENDEZVOUS)' --restarts $(RESTARTS) $(ARGS)

transfer: $(TOY_DATA) | $(READY) ## fine-tune a detector from INIT on TRAIN and evaluate it on TEST
	@$(BOOK) $(NB)/04_transfer.ipynb --results $(RESULTS) --run-name $(or $(RUN),transfer-$(PROFILE)) \
	    $(LAUNCH_FLAGS) -p config $(NB)/params/transfer-$(PROFILE).yaml -p init '$(INIT)' -p train '$(TRAIN)' -p test '$(TEST)'

report: | $(READY) ## the table of RUNS beside the paper's
	@$(BOOK) $(NB)/05_report.ipynb --results $(RESULTS) --run-name $(or $(RUN),report) $(if $(RUNS),-p runs '[$(subst $(SPACE),$(COMMA) ,$(strip $(RUNS)))]')

EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,

# The quickstart: five notebooks, each made from what it needs. Its seed is its own, so that it is the same for everyone.
QS := $(RESULTS)/quickstart
# A run older than what it was made from is made anew; a newer one was interrupted and goes on.
QUICK = if [ $(@D)/run.json -ot $< ]; then rm -rf $(@D); fi; $(BOOK) $(NB)/$(basename $(@F)).ipynb --results $(RESULTS) --run-name $(notdir $(@D))

$(QS)-proposals/01_proposals.html: $(SCENES)/scenes.json | $(READY)
	@$(QUICK)
$(QS)-views/02_views.html: $(QS)-proposals/01_proposals.html | $(READY)
	@$(QUICK)
$(QS)-soco/03_pretrain.html: $(QS)-proposals/01_proposals.html | $(READY)
	@$(QUICK)
$(QS)-transfer/04_transfer.html: $(QS)-soco/03_pretrain.html | $(READY)
	@$(QUICK) -p init $(QS)-soco
$(QS)-scratch/04_transfer.html: $(SCENES)/scenes.json | $(READY)
	@$(QUICK)
$(QS)-report/05_report.html: $(QS)-scratch/04_transfer.html $(QS)-transfer/04_transfer.html | $(READY)
	@$(QUICK)

.NOTPARALLEL: # two runs at a time on the same cores take longer than one after the other
quickstart: $(QS)-views/02_views.html $(QS)-report/05_report.html ## the whole book, small, on embedded data: about ten minutes on two cores
	@echo; cat $(QS)-report/table.md
	@echo; echo "Notebooks as executed and as HTML (open $(QS)-report/05_report.html first):"; ls -1 $(QS)-*/*.html | sed 's/^/  /'
	@echo; echo "Next: make lab; make proposals IMAGES=folder:/your/photos; make pretrain IMAGES=folder:/your/photos GPUS=2; make transfer INIT=$(RESULTS)/pretrain-toy"

gallery: $(QS)-report/05_report.html | $(READY) ## put the quickstart's figures and table into the README
	@$(PY) -m soco_lib.gallery

probe: | $(READY) ## class of labelled objects (TEST=coco:... or voc:...) from the frozen features of the pretraining INIT
	@$(PY) -m soco_lib.probe '$(INIT)' --data '$(TEST)'

# -------------------------------------------------------------------------------------------------------------- checks
test: | $(READY) ## run the tests; ARGS='-k boxes' chooses among them
	@$(PY) -m pytest $(ARGS)

clean: ## remove caches; results and the environment stay
	@find . \( -path ./.venv -o -path ./.git -o -path ./data \) -prune -o -type d \
	    \( -name __pycache__ -o -name .pytest_cache -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
