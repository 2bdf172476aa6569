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
#: one of the paper's benchmarks, such as coco-fpn-1x, at the scale of PROFILE (default: the transfer's parameter file)
BENCHMARK :=
#: training and test data of a transfer, coco:JSON@IMAGES (default: the benchmark's or the parameter file's)
TRAIN :=
TEST :=
#: the same for the benchmarks of VOC and LVIS in `make benchmarks`
VOC_TRAIN :=
VOC_TEST :=
LVIS_TRAIN :=
LVIS_TEST :=
#: of `make predict`: the folder of a finished transfer, and the least score of a detection that is kept
MODEL :=
SCORE := 0.5
#: transfer runs of a report, by name (default: the quickstart's)
RUNS :=
#: of `make compare`, with B: two runs, their folders or names under RESULTS
A :=
B :=
#: of `make data-check` and `make benchmarks`: data sets or benchmarks (default: all)
NAMES :=
#: other settings of a pretraining or transfer, such as SET='k: 8, steps: 200'
SET :=
#: seeds of a study, such as SEEDS=0,1,2
SEEDS := 0
#: runs of a study at a time, each with GPUS of its own
JOBS := 1
#: of a study: 1 prints what there is, what would run and its hours (MEASURE=1: from a step timed here where no run tells)
PLAN :=
MEASURE :=
#: of a study: 1 counts runs of which there are only tracked records as done
RECORDED :=
#: of a study: only these variants; other benchmarks in place of its own; comma between names
VARIANTS :=
BENCHMARKS :=
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
#: of `make check-gpu`: 1 leaves out what takes minutes
QUICK :=
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

.PHONY: help setup lab test check-variants check-gpu clean changed

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
	@pins=$$(grep -o '^[^# ]*==[^ ]*' $(PINNED)); [ -z "$$($(PIP) freeze --all | grep -vxFf - <(echo "$$pins"))" ] || { \
	    $(PIP) uninstall -qq -y detectron2 sal-detectron2 lvis; \
	    $(PIP) install -q --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" \
	        --no-deps --only-binary=:all: --python-version 3.10 --platform linux_x86_64 --require-hashes -r $(PINNED); }
else
	@$(PIP) uninstall -qq -y detectron2 sal-detectron2
	@$(PIP) install -q --no-build-isolation '$(WANTED)'
	@$(PIP) install -q --no-deps --require-hashes -r <(sed -n '/^lvis/,$$p' $(PINNED))
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
.PHONY: data proposals views pretrain join transfer predict benchmarks compare report quickstart book gallery probe probe-table data-check
.PHONY: table1 table2 table3 table6 table7 table8 table10

# One to three objects a scene, none small. data/scenes: to learn from, and a val split to develop on; data/scenes-test: to report.
DRAW := $(PY) -m soco_lib.scenes --most 3 --smallest 0.25
$(SCENES)/scenes.json: | $(READY)
	@$(DRAW) --out $(SCENES) --train 1500 --val 200
$(SCENES)-test/scenes.json: | $(READY)
	@$(DRAW) --out $(SCENES)-test --train 0 --val 300 --seed 1

data: $(SCENES)/scenes.json $(SCENES)-test/scenes.json ## draw the embedded scenes (data/scenes and data/scenes-test, COCO layout)

data-check: | $(READY) ## count images and annotations of NAMES against the known totals of COCO, VOC, LVIS, ImageNet
	@$(PY) -m soco_lib.transfer.check_data $(NAMES)

# LVIS's toy benchmarks read the scenes in LVIS layout.
$(SCENES)-lvis/lvis_val.json: $(SCENES)/scenes.json | $(READY)
	@$(PY) -m soco_lib.transfer.make_lvis

# The toy profile's data are the scenes, unless others are named.
TOY_DATA := $(if $(filter toy,$(PROFILE)),$(SCENES)/scenes.json $(SCENES)-test/scenes.json)
PICTURES := $(or $(IMAGES),$(if $(filter toy,$(PROFILE)),coco:$(SCENES)/annotations/instances_train.json,folder:imagenet/train))
# data/scenes-proposals for the scenes, else by the last part of the path: folder:photos/cats -> data/cats-proposals
STORE := $(or $(PROPOSALS),data/$(if $(findstring $(SCENES)/,$(PICTURES)),scenes,$(basename $(notdir $(lastword $(subst :, ,$(firstword $(subst @, ,$(PICTURES))))))))-proposals)
# PROPOSALS=whole is one box that is the image, and no store.
PROPOSE = $(if $(filter whole,$(STORE)),,$(PY) -m soco_lib.data.store --images '$(PICTURES)' --out '$(STORE)')
DATA_FLAGS = -p images '$(PICTURES)' -p proposals '$(STORE)'
LAUNCH_FLAGS = -p seed $(SEED) -p gpus $(GPUS) -p nodes $(NODES) -p rendezvous '$(RENDEZVOUS)' -p restarts $(RESTARTS) \
    -p launcher $(LAUNCHER) -p partition '$(PARTITION)' -p minutes $(MINUTES) -p cpus $(CPUS) -p overrides '{$(SET)}'

proposals: $(TOY_DATA) | $(READY) ## proposals of IMAGES, and a look at them
	@$(BOOK) $(NB)/01_proposals.ipynb --results $(RESULTS) --run-name $(or $(RUN),$(notdir $(STORE))) $(DATA_FLAGS)

views: $(TOY_DATA) | $(READY) ## the views that pretraining sees of IMAGES
	@$(PROPOSE)
	@$(BOOK) $(NB)/02_views.ipynb --results $(RESULTS) --run-name $(or $(RUN),views-$(PROFILE)) $(DATA_FLAGS) \
	    -p config $(NB)/params/pretrain-$(PROFILE).yaml

pretrain: $(TOY_DATA) | $(READY) ## pretrain on IMAGES with GPUS x NODES processes; goes on where it was interrupted
	@$(PROPOSE)
	@$(BOOK) $(NB)/03_pretrain.ipynb --results $(RESULTS) --run-name $(or $(RUN),pretrain-$(PROFILE)) $(DATA_FLAGS) \
	    $(LAUNCH_FLAGS) -p config $(NB)/params/pretrain-$(PROFILE).yaml

join: | $(READY) ## on every other node: this node's part of the run RUN (NODES, GPUS, RENDEZVOUS as on the first)
	@$(PY) -m soco_lib.runs.launch join $(RESULTS)/$(RUN) --gpus $(GPUS) --nodes $(NODES) --rendezvous '$(RENDEZVOUS)' --restarts $(RESTARTS) $(ARGS)

transfer: $(TOY_DATA) $(if $(findstring toy lvis,$(PROFILE) $(BENCHMARK)),$(SCENES)-lvis/lvis_val.json) | $(READY) ## fine-tune a detector from INIT on TRAIN, or as BENCHMARK says, and evaluate it on TEST
	@$(BOOK) $(NB)/04_transfer.ipynb --results $(RESULTS) --run-name $(or $(RUN),transfer-$(if $(BENCHMARK),$(BENCHMARK)-)$(PROFILE)) \
	    $(LAUNCH_FLAGS) -p config $(NB)/params/transfer-$(PROFILE).yaml -p init '$(INIT)' -p train '$(TRAIN)' -p test '$(TEST)' \
	    -p benchmark '$(BENCHMARK)' -p profile $(PROFILE)

predict: | $(READY) ## detect on IMAGES with the fine-tuned run MODEL: COCO results, counts a class, a contact sheet
	@$(BOOK) $(NB)/11_predict.ipynb --results $(RESULTS) --run-name $(or $(RUN),predict-$(notdir $(MODEL:%/=%))) $(LAUNCH_FLAGS) \
	    -p model '$(MODEL)' -p images '$(IMAGES)' -p score '$(SCORE)'

# Each has a run folder of its own, so a second call goes on.
benchmarks: $(TOY_DATA) | $(READY) ## every benchmark of the paper (or NAMES) from INIT, one after the other
	@for name in $(or $(NAMES),$$($(PY) -c 'from soco_lib.transfer.benchmarks import BENCHMARKS; print(*BENCHMARKS)')); do \
	    case $$name in \
	        voc-*) data=(TRAIN='$(VOC_TRAIN)' TEST='$(VOC_TEST)');; \
	        lvis-*) data=(TRAIN='$(LVIS_TRAIN)' TEST='$(LVIS_TEST)');; \
	        *) data=(TRAIN='$(TRAIN)' TEST='$(TEST)');; \
	    esac; \
	    $(MAKE) transfer BENCHMARK=$$name "$${data[@]}" RUN="$(or $(RUN),$(notdir $(INIT)))-$$name-$(PROFILE)-s$(SEED)"; \
	done

# Status 3: the text is all that these two runs allow.
compare: | $(READY) ## two runs A and B: what differs in settings and metrics; of two transfers also curves, classes, errors, images
	@$(PY) -m soco_lib.transfer.compare '$(A)' '$(B)' --results '$(RESULTS)' || { status=$$?; [ $$status = 3 ] && exit 0 || exit $$status; }; \
	$(BOOK) $(NB)/07_compare.ipynb --results $(RESULTS) --run-name $(or $(RUN),compare-$(notdir $(A:%/=%))-$(notdir $(B:%/=%))) \
	    -p run_a '$(A)' -p run_b '$(B)'

table1: ## Table 1 of the paper, Mask R-CNN R50-FPN on COCO, with every transfer of it under RESULTS at PROFILE (all: both)
table2: ## the same of Table 2, Mask R-CNN R50-C4 on COCO
table3: ## of Table 3, Faster R-CNN R50-C4 on VOC
table6: ## of Table 6, LVIS
table7: ## of Table 7, RetinaNet and FCOS
table8: ## of Table 8, 5 % and 10 % of COCO
table10: ## of Table 10, COCO 4x
table1 table2 table3 table6 table7 table8 table10: | $(READY)
	@$(PY) -m soco_lib.tables --tables $(@:table%=%) --results '$(RESULTS)' --profile '$(PROFILE)'

report: | $(READY) ## the table of RUNS beside the paper's
	@$(BOOK) $(NB)/05_report.ipynb --results $(RESULTS) --run-name $(or $(RUN),report) $(if $(RUNS),-p runs '[$(subst $(SPACE),$(COMMA) ,$(strip $(RUNS)))]')

EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
COMMA := ,

# The quickstart: five notebooks, each made from what it needs. Its seed is its own, so that it is the same for everyone.
QS := $(RESULTS)/quickstart
# A run older than what it was made from is made anew; a newer one was interrupted and goes on.
QUICK = if [ $(@D)/run.json -ot $< ]; then rm -rf $(@D); fi; $(BOOK) $(NB)/$(basename $(@F)).ipynb --results $(RESULTS) --run-name $(notdir $(@D)) $(if $(TOGETHER),--label '$(notdir $(@D))')

$(QS)-proposals/01_proposals.html: $(SCENES)/scenes.json | $(READY)
	@$(QUICK)
$(QS)-views/02_views.html: $(QS)-proposals/01_proposals.html | $(READY)
	@$(QUICK)
$(QS)-soco/03_pretrain.html: $(QS)-proposals/01_proposals.html | $(READY)
	@$(QUICK)
$(QS)-transfer/04_transfer.html: $(QS)-soco/03_pretrain.html $(SCENES)-test/scenes.json | $(READY)
	@$(QUICK) -p init $(QS)-soco
$(QS)-scratch/04_transfer.html: $(SCENES)-test/scenes.json $(SCENES)/scenes.json | $(READY)
	@$(QUICK)
$(QS)-report/05_report.html: $(QS)-scratch/04_transfer.html $(QS)-transfer/04_transfer.html | $(READY)
	@$(QUICK)

# One thing at a time with all cores, but for the two transfers: networks as small as these gain little from a second thread, so side by
# side, each with half of the cores, they end sooner than one after the other. Two with all cores each would stall one another.
ifndef TOGETHER
.NOTPARALLEL:
endif
quickstart: $(QS)-views/02_views.html $(QS)-soco/03_pretrain.html $(SCENES)-test/scenes.json ## the whole book, small, on embedded data: about ten minutes on two cores
	@OMP_NUM_THREADS=$$((($$(nproc 2>/dev/null || echo 2) + 1) / 2)) $(MAKE) --silent --jobs=2 TOGETHER=1 $(QS)-report/05_report.html
	@echo; cat $(QS)-report/table.md
	@echo; echo "Notebooks as executed and as HTML (open $(QS)-report/05_report.html first):"; ls -1 $(QS)-*/*.html | sed 's/^/  /'
	@echo; echo "All of it as one site, with contents and search: make book"
	@echo; echo "Next: make lab; make proposals IMAGES=folder:/your/photos; make pretrain IMAGES=folder:/your/photos GPUS=2; make transfer INIT=$(RESULTS)/pretrain-toy"

# Sphinx and its theme come with the first site: nothing else needs them.
book: | $(READY) ## a site of all executed notebooks, tables and pictures, RESULTS/book/index.html; installs Sphinx the first time
	@$(PY) -c 'import furo, myst_nb' 2>/dev/null || { echo "adding Sphinx to $(ENV)"; $(PIP) install -q --no-warn-conflicts -e '.[book]'; }
	@$(PY) -m soco_lib.book.site --results '$(RESULTS)'

gallery: quickstart claims | $(READY) ## put the quickstart's and the claims' figures and tables into the README
	@$(PY) -m soco_lib.book.gallery

probe: | $(READY) ## class of labelled objects (TEST=coco:... or voc:..., learnt from TRAIN or from half of TEST) from the frozen features of the pretraining INIT
	@$(PY) -m soco_lib.features.probe '$(INIT)' --data '$(TEST)' --fit '$(TRAIN)'

probe-table: | $(READY) ## mean and spread over seeds of the probed pretrainings RUNS, in RESULTS/RUN
	@$(PY) -m soco_lib.features.probe_table '$(RESULTS)/$(or $(RUN),probe-table)' $(addprefix $(RESULTS)/,$(RUNS))

# ------------------------------------------------------------------------------------------------------------ studies
STUDIES := $(addprefix ablation-,labels photographs longer detectors alignment viewsize batchsize proposals momentum) table9 \
    $(addprefix pretrain-soco-,100 400 star-400 c4-100 c4-400)
.PHONY: $(STUDIES) table4 table5 tables show

ablation-labels: ## study of Tables 1 and 8: scratch, whole image, SoCo, SoCo* on 5 %, 10 % and all of the labels
ablation-photographs: ## the same on photographs, people only: notebooks/studies/photographs.yaml says which data
ablation-longer: ## study of Table 10: four times the iterations
ablation-detectors: ## study of Tables 1, 2 and 7: pretrained as one detector, fine-tuned as another
ablation-alignment: ## study of Table 4: parts of the alignment, added one by one
ablation-viewsize: ## study of Table 5a: size of V3
ablation-batchsize: ## study of Table 5b: batch of pretraining
ablation-proposals: ## study of Table 5c: generator of proposals and K
ablation-momentum: ## study of Table 5d: momentum of the target
table9: ## study of Table 9: pretraining data
pretrain-soco-100: ## SoCo-R50-FPN, 100 epochs, with the transfers that score it
pretrain-soco-400: ## the same, 400 epochs
pretrain-soco-star-400: ## SoCo*, 400 epochs
pretrain-soco-c4-100: ## SoCo-R50-C4, 100 epochs
pretrain-soco-c4-400: ## the same, 400 epochs

# What is missing runs; then the notebook shows what there is, also after a failure, whose status is the target's.
$(STUDIES): $(TOY_DATA) | $(READY)
	@name=$(@:ablation-%=%); status=0; \
	$(PY) -m soco_lib.studies $$name --profile '$(PROFILE)' --seeds '$(SEEDS)' --jobs '$(JOBS)' --gpus '$(GPUS)' --nodes '$(NODES)' \
	    --restarts '$(RESTARTS)' --launcher '$(LAUNCHER)' --partition '$(PARTITION)' --minutes '$(MINUTES)' --cpus '$(CPUS)' \
	    --results '$(RESULTS)' --variants '$(VARIANTS)' --benchmarks '$(BENCHMARKS)' $(if $(PLAN),--plan) $(if $(MEASURE),--measure) $(if $(RECORDED),--recorded) || status=$$?; \
	if [ -z '$(PLAN)' ]; then \
	    $(PY) -m soco_lib.tables --studies $$name --results '$(RESULTS)' --profile '$(PROFILE)'; \
	    $(BOOK) $(NB)/08_ablation.ipynb --results '$(RESULTS)' --run-name study-$$name-'$(PROFILE)' -p study $$name -p profile '$(PROFILE)'; \
	fi; exit $$status

# Study by study, the seeds that verdicts need first; what is there is not run again.
TEST_SEEDS := 0,1,2
# The seeds of the tracked records of C4 (results/REGIME.md), so that RECORDED=1 has nothing to run again.
C4_SEEDS := 20,21,22
PHOTOGRAPHS := $(if $(wildcard data/people/test.json),photographs:0$(COMMA)1$(COMMA)2$(COMMA)3$(COMMA)4)
.PHONY: reproduce-toy claims rerun
reproduce-toy: $(TOY_DATA) | $(READY) ## the paper's claims at toy scale: every study with its seeds, then the claim table (PLAN=1: what would run)
	@status=0; for study in labels:$(TEST_SEEDS) alignment:$(TEST_SEEDS) labels:0,1,2,3,4 longer:0,1,2,3,4 detectors:$(C4_SEEDS) \
	        proposals:$(TEST_SEEDS) momentum:$(TEST_SEEDS) viewsize:$(TEST_SEEDS) batchsize:$(TEST_SEEDS) $(PHOTOGRAPHS); do \
	    echo "== $$study"; \
	    $(PY) -m soco_lib.studies "$${study%:*}" --profile toy --seeds "$${study#*:}" --results '$(RESULTS)' \
	        --jobs $(if $(filter file,$(origin JOBS)),2,$(JOBS)) $(if $(PLAN),--plan) $(if $(RECORDED),--recorded) || status=$$?; \
	    [ $$status != 143 ] || exit $$status; \
	done; $(if $(PHOTOGRAPHS),,echo "left out: study photographs, whose data a clone has not (notebooks/studies/photographs.yaml names them)";) \
	$(if $(PLAN),,{ $(CLAIMS); } || status=$$?;) exit $$status

CLAIMS = $(PY) -m soco_lib.tables --tables trials --results '$(RESULTS)' >/dev/null; \
    $(BOOK) $(NB)/10_claims.ipynb --results '$(RESULTS)' --run-name $(or $(RUN),claims)
claims: $(SCENES)-test/scenes.json | $(READY) ## the claim table and notebook 10 from what runs and records there are
	@$(CLAIMS)

rerun: $(TOY_DATA) | $(READY) ## the finished or tracked run RUN once more from nothing, every number of both compared
	@$(if $(PROPOSE),$(PROPOSE) >/dev/null)
	@$(PY) -m soco_lib.studies.rerun '$(RUN)' --results '$(RESULTS)'

table4: | $(READY) ## Table 4 beside our runs of it, from their records (PROFILE=all: toy and paper)
	@$(PY) -m soco_lib.tables --studies alignment --results '$(RESULTS)' --profile '$(PROFILE)'
table5: | $(READY) ## the same of Tables 5a to 5d
	@$(PY) -m soco_lib.tables --studies viewsize batchsize proposals momentum --results '$(RESULTS)' --profile '$(PROFILE)'
tables: | $(READY) ## every table that has runs or tracked records; needs neither data nor a GPU
	@$(PY) -m soco_lib.tables --results '$(RESULTS)'
show: | $(READY) ## the run RUN, a folder or a tracked record: settings, state, sessions, metrics, the end of its log
	@$(PY) -m soco_lib.tables.show '$(RUN)' --results '$(RESULTS)'

# -------------------------------------------------------------------------------------------------------------- checks
test: | $(READY) ## run the tests; ARGS='-k boxes' chooses among them
	@$(PY) -m pytest $(ARGS)

check-variants: | $(READY) ## train every variant of the method for 20 steps, the compiled one too: minutes
	@SOCO_SLOW=1 $(PY) -m pytest tests/test_variants.py $(ARGS)

check-gpu: | $(READY) ## does this node compute what the book says, and how fast? QUICK=1: shorter; small on a CPU
	@$(PY) -m tests.gpu $(if $(QUICK),--quick) --results '$(RESULTS)'

BENCHES := views step proposals store readers startup
.PHONY: bench $(addprefix bench-,$(BENCHES))
bench: $(TOY_DATA) | $(READY) ## time every part beside its plain formulation, on IMAGES; tables go to RESULTS/bench
	@$(PY) -m tests.speed.bench $(if $(IMAGES),--images '$(IMAGES)') --results '$(RESULTS)'
	@$(BOOK) $(NB)/09_speed.ipynb --results $(RESULTS) --run-name $(or $(RUN),speed) -p results '$(RESULTS)'
bench-views: ## from a file's bytes to normalised views
bench-step: ## one training step of SoCo-R50-FPN: time, memory, operations
bench-proposals: ## selective search: time, recall, overlap
bench-store: ## the proposal store at ImageNet's size
bench-readers: ## folder, zip and tar
bench-startup: ## from a command to the first step
$(addprefix bench-,$(BENCHES)): $(TOY_DATA) | $(READY)
	@$(PY) -m tests.speed.bench $(@:bench-%=%) $(if $(IMAGES),--images '$(IMAGES)') --results '$(RESULTS)'

clean: ## remove caches; results and the environment stay
	@find . \( -path ./.venv -o -path ./.git -o -path ./data \) -prune -o -type d \
	    \( -name __pycache__ -o -name .pytest_cache -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
