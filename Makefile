# The book's commands. `make` lists the targets by group (`##@`), from the `##` behind them or, for a family, `##:` above it.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

#: * RUN=           name of the run, a folder under RESULTS (default: the target's own)
#: * PROFILE=toy    scale: a parameter file, toy (minutes on two cores) or paper
#: * IMAGES=        pictures to pretrain on: folder:PATH, coco:JSON, voc:ROOT, zip:FILE, list:FILE (default: the parameter file's)
#: * INIT=scratch   what a transfer starts from: a pretraining's run folder, a checkpoint, or scratch
#: * SET= SEED=0    other settings of a pretraining or transfer, such as SET='k: 8, steps: 200'; random seed
#: * GPUS=1         processes on each machine, one a GPU
#: * LAUNCH=        launch options of a cluster: a file such as notebooks/params/launch-slurm.yaml; single ones win over it
#:   RESULTS=results  where run folders go
#:   PROPOSALS=     folder of the proposals of IMAGES (default: data/<name of the pictures>-<a number of theirs>-proposals)
#:   BENCHMARK=     one of the paper's benchmarks, such as coco-fpn-1x, at the scale of PROFILE (default: the parameter file's settings)
#:   TRAIN= TEST=   training and test data of a transfer, coco:JSON@IMAGES (default: the benchmark's or the parameter file's)
#:   VOC_TRAIN= VOC_TEST= LVIS_TRAIN= LVIS_TEST=  the same for the benchmarks of VOC and LVIS in `make benchmarks`
#:   MODEL= SCORE=0.5  of `make predict`: a finished transfer's folder, and the least score of a detection that is kept
#:   RUNS=          runs of a report or of a table of probes, by name (default: the quickstart's)
#:   A= B= NAMES=   two runs for `make compare`, folders or names under RESULTS; names for `make data-check` and `benchmarks` (default: all)
#:   SEEDS=0 JOBS=1  of a study: seeds, such as SEEDS=0,1,2; runs at a time, each with GPUS of its own (`make reproduce-toy`: 2)
#:   PLAN= MEASURE= of a study: 1 prints what there is, what would run and its hours; 1: from a step timed here if no run tells
#:   RECORDED= VARIANTS= BENCHMARKS=  of a study: 1 counts tracked records as runs; only these, and others in place of its own, a,b
#:   NODES=1 RENDEZVOUS= RESTARTS=0  launch options: machines; host:port that all reach; times that all processes start anew after one died
#:   LAUNCHER=local PARTITION= MINUTES=240 CPUS=  launch options: local or slurm; of SLURM: minutes a job (requeued, it goes on), cores a node
#:   PYTHON=        interpreter that builds .venv, Python 3.11 to 3.13 (default: the first found)
#:   DETECTRON2=    any pip specification in place of the pinned Detectron2; `pinned` goes back
#:   QUICK= ARGS=   1: `make check-gpu` leaves out what takes minutes; passed on by `make test` to pytest, by `make lab` to JupyterLab
# The defaults, which hold unless make is given a value: a shell's own variable of such a name is not meant.
DEFAULTS := PROFILE=toy INIT=scratch SEED=0 SEEDS=0 RESULTS=results SCORE=0.5 $(addsuffix =,MODEL RUN IMAGES SET GPUS LAUNCH PROPOSALS BENCHMARK \
    TRAIN TEST VOC_TRAIN VOC_TEST LVIS_TRAIN LVIS_TEST RUNS A B NAMES JOBS PLAN MEASURE RECORDED VARIANTS BENCHMARKS NODES RENDEZVOUS \
    RESTARTS LAUNCHER PARTITION MINUTES CPUS QUICK ARGS)
$(foreach default,$(DEFAULTS),$(eval $(default)))
# --------------------------------------------------------------------------------------------------- what was asked for
# $(call q,TEXT) is one word of the shell, whatever the text holds; $(call y,TEXT) one string of YAML; $(call last,PATH) its last part.
q = '$(subst ','\'',$1)'
y = "$(subst ",\",$(subst \,\\,$1))"
last = $(lastword $(subst /, ,$1))
COMMA := ,
# ARGS as words of the shell, in which quotes hold words together and nothing is expanded.
TAKE_ARGS = $(if $(ARGS),args=(); while IFS= read -r word; do args+=("$$word"); done < <(printf '%s\n' $(call q,$(ARGS)) | xargs -n 1 printf '%s\n');)
ARGS_TAKEN = $(if $(ARGS),"$${args[@]}")
# Names that make is given must be known: these, some of this file's, make's own, and what programs read in the environment.
VARIABLES := $(foreach default,$(DEFAULTS),$(firstword $(subst =, ,$(default)))) PYTHON DETECTRON2
OTHERS := PY PIP ENV TOGETHER SHELL .% -% MAKE% SOCO_% PYTHON% OMP_% CUDA_% TORCH_% NCCL_% SLURM_% CONDA_% VIRTUAL_ENV HOME TMPDIR PATH
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command%,$(origin $(name))),$(name)))
STRANGER := $(firstword $(filter-out $(VARIABLES) $(OTHERS),$(GIVEN)))
NEAREST = $(shell python3 -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1))' \
    $(call q,$(STRANGER)) $(VARIABLES) 2>/dev/null)
$(if $(STRANGER),$(error there is no variable $(STRANGER)=$(addprefix : did you mean ,$(addsuffix =?,$(NEAREST))) (`make variables` lists all)))
# Their values are taken as they were typed: a `$` is a dollar sign, not the beginning of one of make's own variables.
$(foreach name,$(filter $(VARIABLES),$(GIVEN)),$(eval override $(name) := $$(value $(name))))
refuse = $(error $1=$($1) $2)
not_digits = $(subst 0,,$(subst 1,,$(subst 2,,$(subst 3,,$(subst 4,,$(subst 5,,$(subst 6,,$(subst 7,,$(subst 8,,$(subst 9,,$1))))))))))
is_number = $(if $1,$(filter xx,x$(call not_digits,$1)x))
has_blanks = $(word 2,x$1x)
SIGNS := ' " ` ; $$ ( ) { } & | < > * ? [ ] !
has_signs = $(strip $(foreach sign,$(SIGNS),$(findstring $(sign),$1)))
$(foreach name,SEED GPUS NODES RESTARTS MINUTES CPUS JOBS,$(if $(filter-out SEED,$(name))$($(name)),$(if $(filter-out xx,x$($(name))x),\
    $(if $(call is_number,$($(name))),,$(call refuse,$(name),must be a whole number)))))
$(if $(SEED),,$(call refuse,SEED,must be a whole number))
$(foreach name,GPUS NODES MINUTES JOBS,$(if $($(name)),$(if $(subst 0,,$($(name))),,$(call refuse,$(name),must be at least 1))))
$(if $(call is_number,$(subst $(COMMA),,$(SEEDS))),,$(call refuse,SEEDS,must be whole numbers joined by commas$(COMMA) as SEEDS=0$(COMMA)1))
$(foreach name,PLAN MEASURE RECORDED QUICK,$(if $(filter-out xx x1x,x$($(name))x),$(call refuse,$(name),is a switch: 1$(COMMA) or leave it out)))
PROFILES := toy paper $(if $(filter table%,$(MAKECMDGOALS)),all) $(patsubst notebooks/params/pretrain-%.yaml,%,$(wildcard notebooks/params/pretrain-*.yaml))
$(if $(filter $(PROFILES:%=x%x),$(if $(call has_blanks,$(PROFILE)),,x$(PROFILE)x)),,$(call refuse,PROFILE,is no scale: $(sort $(PROFILES))))
$(if $(filter xx xlocalx xslurmx,$(if $(call has_blanks,$(LAUNCHER)),,x$(LAUNCHER)x)),,$(call refuse,LAUNCHER,is unknown: local or slurm))
$(if $(call has_blanks,$(RUN))$(call has_signs,$(RUN)),$(if $(findstring /,$(RUN)),,$(call refuse,RUN,is no folder's name: use letters$(COMMA) digits and _ - . +)))
$(if $(call has_signs,$(MAKECMDGOALS)),$(error there is no target $(MAKECMDGOALS): `make` lists them))
$(if $(strip $(RESULTS)),,$(call refuse,RESULTS,names no folder: leave it out for results/))
# ---------------------------------------------------------------------------------------------------------- environment
# The active virtual or conda environment, but never conda's base, which is nobody's project; else .venv, also when that is the active one.
ENV := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)),.venv)
ENV := $(if $(filter $(CURDIR)/.venv,$(ENV)),.venv,$(ENV))
$(if $(call has_blanks,$(ENV))$(call has_signs,$(ENV)),$(error the active environment's path has a space or a sign of the shell's ($(ENV)): deactivate it$(COMMA) and .venv is used))
PY := $(ENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# A kernel of the same name in the user's home must not stand in for this environment's.
export JUPYTER_PREFER_ENV_PATH := 1
# A stamp in the environment holds what was set up: the checkout's path, then which Detectron2. Rules name it order-only (after `|`): a
# product is not made again merely because the stamp is newer.
READY := $(ENV)/.soco-ready
PINNED := soco_lib/detectron2.txt
# Unless one is asked for, the Detectron2 that was set up stays.
WANTED := $(or $(strip $(DETECTRON2)),$(shell sed -n 2p '$(READY)' 2>/dev/null),pinned)
CHANGED := $(shell printf '%s\n' $(call q,$(CURDIR)) $(call q,$(WANTED)) | cmp -s - '$(READY)' || echo changed)
.PHONY: help variables setup lab quickstart book changed data proposals views data-check pretrain join transfer benchmarks compare rerun \
    predict probe tables show report claims probe-table gallery table9 reproduce-toy test lint check-variants check-gpu bench clean

##@ start
help: ## this list
	@awk '/^##@ / { print $$2 } /^##: / { name = $$2; sub(/^##: [^ ]* /, ""); printf "  %-19s %s\n", name, $$0 } \
	    /^[a-z][a-z0-9-]*:.*## / { name = $$1; sub(/:.*/, "", name); sub(/.*## /, ""); printf "  %-19s %s\n", name, $$0 }' \
	    $(firstword $(MAKEFILE_LIST))
	@echo "make TARGET [VARIABLE=value]... with the variables used most:"; sed -n 's/^#: \*//p' $(firstword $(MAKEFILE_LIST))
variables: ## every variable
	@sed -n 's/^#: //p' $(firstword $(MAKEFILE_LIST))
setup: | $(READY) ## build .venv, or fill the active environment: dependencies, Detectron2 (every target does this first)
	@echo "$(ENV) is ready"
$(READY): pyproject.toml $(PINNED) $(CHANGED) | $(PY)
	@echo "setting up $(ENV): some minutes the first time"; rm -f $@ # until all of it is there, whatever it was before
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PIP) install -q -e '.[test]'
ifeq ($(WANTED),pinned)
	@pins=$$(grep -o '^[^# ]*==[^ ]*' $(PINNED)); [ -z "$$($(PIP) freeze --all | grep -vxFf - <(echo "$$pins"))" ] || { \
	    $(PIP) uninstall -qq -y detectron2 sal-detectron2 lvis; \
	    $(PIP) install -q --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" \
	        --no-deps --only-binary=:all: --python-version 3.10 --platform linux_x86_64 --require-hashes -r $(PINNED); }
else
	@$(PIP) uninstall -qq -y detectron2 sal-detectron2 && $(PIP) install -q --no-build-isolation $(call q,$(WANTED))
	@$(PIP) install -q --no-deps --require-hashes -r <(sed -n '/^lvis/,$$p' $(PINNED))
endif
	@said=$$($(PY) -W ignore -c 'import torch, cv2, detectron2' 2>&1) || { case "$$said" in \
	    *libGL*|*libgthread*) remedy="another OpenCV shadows the headless one; pip uninstall opencv-python opencv-contrib-python, then make setup (or install libgl1 and libglib2.0-0)";; \
	    *detectron2*) remedy="try the pinned Detectron2, make setup DETECTRON2=pinned";; \
	    *) remedy="remove $(ENV) and run make setup again";; \
	esac; echo "setup: $$(tail -n 1 <<<"$$said"): $$remedy" >&2; exit 1; }
	@printf '%s\n' $(call q,$(CURDIR)) $(call q,$(WANTED)) > $@
$(PY):
	@[ '$(ENV)' = .venv ] || { \
	    echo "setup: the active environment $(ENV) has no bin/python: deactivate it (then .venv is used) or activate another" >&2; exit 1; }; \
	for python in $(if $(PYTHON),$(call q,$(PYTHON)),python3.11 python3 python3.12 python3.13); do \
	    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && exec "$$python" -m venv --clear .venv; \
	done; echo "setup: "$(call q,$(or $(PYTHON),no python3 on the PATH))" is not Python 3.11 to 3.13: make setup PYTHON=/path/to/python3.11" >&2; exit 1
lab: | $(READY) ## open JupyterLab on notebooks/
	@$(TAKE_ARGS) PATH="$(abspath $(ENV))/bin:$$PATH" $(PY) -m jupyterlab --ServerApp.root_dir=$(call q,$(CURDIR)) --LabApp.default_url=/lab/tree/notebooks $(ARGS_TAKEN)
# A notebook's product is its HTML: it is rendered last and put in place by a rename, so it stands for the whole run.
BOOK := $(PY) -m soco_lib.book
NOTEBOOK = $(BOOK) notebooks/$(1).ipynb --results $(call q,$(RESULTS)) --run-name $(call q,$(or $(RUN),$(2)))
SCENES := data/scenes
# The toy profile's data are the scenes, unless others are named.
TOY_DATA := $(if $(filter toy,$(PROFILE)),$(SCENES)/scenes.json $(SCENES)-test/scenes.json)
PICTURES := $(or $(IMAGES),$(if $(filter toy,$(PROFILE)),coco:$(SCENES)/annotations/instances_train.json,folder:imagenet/train))
# Where their proposals are: data/scenes-proposals for the scenes, else data/ the path's last part, a number of the whole of it (photos/cats and
# pets/cats are two), -proposals; an older store without that number is used if it is of these images. `whole`: one box, no store.
define NAMED
spec=$(call q,$(PICTURES)); spec=$${spec#folder:}; while [[ $$spec == ?*/ ]]; do spec=$${spec%/}; done; path=$${spec%%@*}; name=$${path##*[/:]}; name=$${name%.*}; \
name=$$(printf %s "$$name" | LC_ALL=C tr -cs 'A-Za-z0-9_+.' - | sed 's/^[^A-Za-z0-9]*//; s/-*$$//'); name=$${name:-images}; old=data/$$name-proposals/store.json; \
if [ -f "$$old" ] && $(call q,$(PY)) -SEc 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["source"].removeprefix("folder:").rstrip("/") != sys.argv[2])' \
    "$$old" "$$spec" 2>/dev/null; then echo "$$name"; else echo "$$name-$$(printf %s "$$spec" | cksum | cut -d' ' -f1)"; fi
endef
NAME = $(eval NAME := $(if $(findstring $(SCENES)/,$(PICTURES)),scenes,$(shell $(NAMED))))$(NAME)
STORE = $(or $(PROPOSALS),data/$(NAME)-proposals)
PROPOSE = $(if $(filter whole,$(STORE)),,$(PY) -m soco_lib.data.store --images $(call q,$(PICTURES)) --out $(call q,$(STORE)) &&)
DATA_FLAGS = -p images $(call q,$(PICTURES)) -p proposals $(call q,$(STORE))
# The launch options that were given, for soco_lib.runs.launch.Launch.of.
HOW := {$(foreach name,LAUNCH GPUS NODES RENDEZVOUS RESTARTS LAUNCHER PARTITION MINUTES CPUS,$(if $($(name)),$(name): $(call y,$($(name)))$(COMMA)))}
RUN_FLAGS = -p seed '$(SEED)' -p launch $(call q,$(HOW)) -p overrides $(call q,{$(SET)})
# The quickstart: five notebooks, each made from what it needs. Its seed is its own, so that it is the same for everyone.
HASH := \#
ODD := $(call has_blanks,$(RESULTS))$(call has_signs,$(RESULTS))$(strip $(foreach sign,: % $(HASH) = \ ~,$(findstring $(sign),$(RESULTS))))
QS := $(if $(ODD),,$(RESULTS)/)quickstart
QS_PAGES := $(addprefix $(QS)-,proposals/01_proposals views/02_views soco/03_pretrain transfer/04_transfer scratch/04_transfer report/05_report)
$(QS)-proposals/01_proposals.html: $(SCENES)/scenes.json
$(QS)-views/02_views.html $(QS)-soco/03_pretrain.html: $(QS)-proposals/01_proposals.html
$(QS)-transfer/04_transfer.html: $(QS)-soco/03_pretrain.html $(SCENES)-test/scenes.json
$(QS)-scratch/04_transfer.html: $(SCENES)-test/scenes.json $(SCENES)/scenes.json
$(QS)-report/05_report.html: $(QS)-scratch/04_transfer.html $(QS)-transfer/04_transfer.html
$(if $(ODD),$(if $(filter quickstart gallery $(QS)%,$(MAKECMDGOALS)),\
    $(error make knows files by names without spaces and signs: RESULTS=$(RESULTS) will not do for the quickstart)))
# A run older than what it was made from is made anew; a newer one was interrupted and goes on.
$(QS_PAGES:%=%.html): | $(READY)
	@if [ '$(@D)/run.json' -ot '$<' ]; then rm -rf '$(@D)'; fi; $(BOOK) notebooks/$(basename $(@F)).ipynb --results $(call q,$(RESULTS)) \
	    --run-name '$(notdir $(@D))' $(if $(TOGETHER),--label '$(notdir $(@D))') $(if $(filter %-transfer,$(@D)),-p init '$(QS)-soco')
# One thing at a time with all cores; but the two transfers, whose networks gain little from a second thread, side by side with half each.
$(if $(TOGETHER),,$(eval .NOTPARALLEL:))
quickstart: $(QS)-views/02_views.html $(QS)-soco/03_pretrain.html $(SCENES)-test/scenes.json ## the whole book, small, on embedded data: about ten minutes on two cores
	@OMP_NUM_THREADS=$$((($$(nproc 2>/dev/null || echo 2) + 1) / 2)) $(MAKE) --silent --jobs=2 TOGETHER=1 '$(QS)-report/05_report.html'
	@echo; cat '$(QS)-report/table.md'; echo; echo "Notebooks as executed and as HTML (open $(QS)-report/05_report.html first):"; ls -1 '$(QS)'-*/*.html | sed 's/^/  /'
	@echo; echo "All of it as one site, with contents and search: make book"; echo; echo "Next: make lab; make proposals IMAGES=folder:/your/photos; make pretrain IMAGES=folder:/your/photos GPUS=2; make transfer INIT=$(RESULTS)/pretrain-toy"
book: | $(READY) ## a site of all executed notebooks, tables and pictures, RESULTS/book/index.html; installs Sphinx the first time
	@$(PY) -c 'import furo, myst_nb' 2>/dev/null || { echo "adding Sphinx to $(ENV)"; $(PIP) install -q --no-warn-conflicts -e '.[book]'; }
	@$(PY) -m soco_lib.book.site --results $(call q,$(RESULTS))

##@ look
data: $(SCENES)/scenes.json $(SCENES)-test/scenes.json ## draw the embedded scenes (data/scenes and data/scenes-test, COCO layout)
# One to three objects a scene, none small. data/scenes: to learn from, and a val split to develop on; data/scenes-test: to report.
DRAW := $(PY) -m soco_lib.scenes --most 3 --smallest 0.25
$(SCENES)/scenes.json: | $(READY)
	@$(DRAW) --out $(SCENES) --train 1500 --val 200
$(SCENES)-test/scenes.json: | $(READY)
	@$(DRAW) --out $(SCENES)-test --train 0 --val 300 --seed 1
# LVIS's toy benchmarks read the scenes in LVIS layout.
$(SCENES)-lvis/lvis_val.json: $(SCENES)/scenes.json | $(READY)
	@$(PY) -m soco_lib.transfer.make_lvis
proposals: $(TOY_DATA) | $(READY) ## proposals of IMAGES, and a look at them
	@$(call NOTEBOOK,01_proposals,$(notdir $(STORE))) $(DATA_FLAGS)
views: $(TOY_DATA) | $(READY) ## the views that pretraining sees of IMAGES
	@$(PROPOSE) $(call NOTEBOOK,02_views,views-$(PROFILE)) $(DATA_FLAGS) -p config $(PARAMS)
data-check: | $(READY) ## what is odd about TRAIN, TEST, IMAGES (DEEP=1: decode all); without these, count NAMES against known totals
	@$(if $(TRAIN)$(TEST)$(IMAGES),$(PY) -m soco_lib.figures.odd_data $(if $(DEEP),--deep) --out $(call q,$(RESULTS)/data-check) \
	    $(if $(TRAIN),--train $(call q,$(TRAIN))) $(if $(TEST),--test $(call q,$(TEST))) $(if $(IMAGES),--images $(call q,$(IMAGES))),$(PY) -m soco_lib.transfer.check_data $(foreach name,$(NAMES),$(call q,$(name))))

##@ run
PARAMS = notebooks/params/pretrain-$(PROFILE).yaml
pretrain: $(TOY_DATA) | $(READY) ## pretrain on IMAGES with GPUS x NODES processes; goes on where it was interrupted
	@$(PY) -m soco_lib.book.settings $(PARAMS) $(call q,{$(SET)}) && $(PROPOSE) $(call NOTEBOOK,03_pretrain,pretrain-$(PROFILE)) $(DATA_FLAGS) $(RUN_FLAGS) -p config $(PARAMS)
join: | $(READY) ## on every other node: this node's part of the run RUN (NODES, GPUS, RENDEZVOUS as on the first)
	@$(TAKE_ARGS) $(PY) -m soco_lib.runs.launch join $(call q,$(RESULTS)/$(RUN)) --launch $(call q,$(HOW)) $(ARGS_TAKEN)
transfer: $(TOY_DATA) $(if $(findstring toy lvis,$(PROFILE) $(BENCHMARK)),$(SCENES)-lvis/lvis_val.json) | $(READY) ## fine-tune a detector from INIT on TRAIN, or as BENCHMARK says, and evaluate it on TEST
	@$(call NOTEBOOK,04_transfer,transfer-$(if $(BENCHMARK),$(BENCHMARK)-)$(PROFILE)) $(RUN_FLAGS) -p config 'notebooks/params/transfer-$(PROFILE).yaml' \
	    -p init $(call q,$(INIT)) -p train $(call q,$(TRAIN)) -p test $(call q,$(TEST)) -p benchmark $(call q,$(BENCHMARK)) -p profile '$(PROFILE)'
predict: | $(READY) ## detect on IMAGES with the fine-tuned run MODEL: COCO results, counts a class, a contact sheet
	@$(call NOTEBOOK,11_predict,predict-$(call last,$(MODEL))) $(RUN_FLAGS) -p model $(call q,$(MODEL)) -p images $(call q,$(IMAGES)) -p score $(call q,$(SCORE))
benchmarks: $(TOY_DATA) | $(READY) ## every benchmark of the paper (or NAMES) from INIT, one after the other
	@names=$(call q,$(NAMES)); $(MAKE) $$(printf 'benchmark-%s ' $${names:-$$($(PY) -c 'from soco_lib.transfer.benchmarks import BENCHMARKS; print(*BENCHMARKS)')})
# Each has a run folder of its own, so a second call goes on; those of VOC and LVIS have data of their own.
OWN = $(if $(filter voc-%,$*),VOC_,$(if $(filter lvis-%,$*),LVIS_))
benchmark-%: $(TOY_DATA) | $(READY)
	@$(MAKE) transfer BENCHMARK='$*' TRAIN=$(call q,$($(OWN)TRAIN)) TEST=$(call q,$($(OWN)TEST)) RUN=$(call q,$(or $(RUN),$(call last,$(INIT)))-$*-$(PROFILE)-s$(SEED))
# Status 3: the text is all that these two runs allow.
compare: | $(READY) ## two runs A and B: what differs in settings and metrics; of two transfers also curves, classes, errors, images
	@$(PY) -m soco_lib.transfer.compare $(call q,$(A)) $(call q,$(B)) --results $(call q,$(RESULTS)) || { status=$$?; [ $$status = 3 ] && exit 0 || exit $$status; }; \
	$(call NOTEBOOK,07_compare,compare-$(call last,$(A))-$(call last,$(B))) -p run_a $(call q,$(A)) -p run_b $(call q,$(B))
rerun: $(TOY_DATA) | $(READY) ## the finished or tracked run RUN once more from nothing, every number of both compared
	@$(subst &&,>/dev/null &&,$(PROPOSE)) $(PY) -m soco_lib.studies.rerun $(call q,$(RUN)) --results $(call q,$(RESULTS))
probe: | $(READY) ## class of labelled objects (TEST=coco:... or voc:..., learnt from TRAIN or half of TEST) from frozen features of INIT
	@$(PY) -m soco_lib.features.probe $(call q,$(INIT)) --data $(call q,$(TEST)) --fit $(call q,$(TRAIN))

##@ tables
TABLES = $(PY) -m soco_lib.tables --results $(call q,$(RESULTS))
CLAIMS = $(TABLES) --tables trials >/dev/null; $(call NOTEBOOK,10_claims,claims)
##: tableN 1 to 8, 10: the paper's table with our runs of it under RESULTS at PROFILE (all: both); 4 and 5: of the studies
table%: | $(READY)
	@$(TABLES) $(if $(filter 4,$*),--studies alignment,$(if $(filter 5,$*),--studies viewsize batchsize proposals momentum,--tables '$*')) --profile '$(PROFILE)'
tables: | $(READY) ## every table that has runs or tracked records; needs neither data nor a GPU
	@$(TABLES)
show: | $(READY) ## the run RUN, a folder or a tracked record: settings, state, sessions, metrics, the end of its log
	@$(PY) -m soco_lib.tables.show $(call q,$(RUN)) --results $(call q,$(RESULTS))
report: | $(READY) ## the table of RUNS beside the paper's
	@$(call NOTEBOOK,05_report,report) $(if $(RUNS),-p runs $(call q,[$(foreach run,$(RUNS),$(call y,$(run))$(COMMA))]))
claims: $(SCENES)-test/scenes.json | $(READY) ## the claim table and notebook 10 from what runs and records there are
	@$(CLAIMS)
probe-table: | $(READY) ## mean and spread over seeds of the probed pretrainings RUNS, in RESULTS/RUN
	@$(PY) -m soco_lib.features.probe_table $(call q,$(RESULTS)/$(or $(RUN),probe-table)) $(foreach run,$(RUNS),$(call q,$(RESULTS)/$(run)))
gallery: quickstart claims | $(READY) ## put the quickstart's and the claims' figures and tables into the README
	@$(PY) -m soco_lib.book.gallery

##@ studies
# What is missing runs; then table and notebook show what there is, also after a failed variant (status 3) and a stop (143).
STUDY_FLAGS = $(if $(PLAN),--plan) $(if $(MEASURE),--measure) $(if $(RECORDED),--recorded) --results $(call q,$(RESULTS))
define STUDY
@status=0; $(PY) -m soco_lib.studies $(1) --profile '$(PROFILE)' --seeds '$(SEEDS)' --jobs '$(or $(JOBS),1)' --launch $(call q,$(HOW)) \
    --variants $(call q,$(VARIANTS)) --benchmarks $(call q,$(BENCHMARKS)) $(STUDY_FLAGS) || status=$$?; \
if [ -z '$(PLAN)' ] && [[ $$status =~ ^(0|3|143)$$ ]]; then \
    $(TABLES) --studies $(1) --profile '$(PROFILE)' && $(BOOK) notebooks/08_ablation.ipynb --results $(call q,$(RESULTS)) \
        --run-name 'study-$(1)-$(PROFILE)' -p study $(1) -p profile '$(PROFILE)' || status=$$?; fi; \
[ $$status != 143 ] || echo 'stopped, all is saved; the same command goes on'; exit $$status
endef
##: ablation-NAME labels photographs longer detectors alignment viewsize batchsize proposals momentum (notebooks/studies says which tables)
ablation-%: $(TOY_DATA) | $(READY)
	$(call STUDY,$*)
##: pretrain-soco-NAME 100 400 star-400 c4-100 c4-400: the paper's pretrainings, with the transfers that score them
pretrain-soco-%: $(TOY_DATA) | $(READY)
	$(call STUDY,$@)
table9: $(TOY_DATA) | $(READY) ## study of Table 9: pretraining data
	$(call STUDY,$@)
reproduce-toy: $(TOY_DATA) | $(READY) ## the paper's claims at toy scale: every study with its seeds, then the claim table (PLAN=1: what would run)
	@status=0; $(PY) -m soco_lib.studies.reproduce --jobs '$(or $(JOBS),2)' $(STUDY_FLAGS) || status=$$?; \
	if [ -z '$(PLAN)' ] && [ $$status != 143 ]; then { $(TABLES) --profile toy; $(CLAIMS); } || status=$$?; fi; exit $$status

##@ checks
test: | $(READY) ## run the tests; ARGS='-k boxes' chooses among them
	@$(TAKE_ARGS) $(PY) -m pytest $(ARGS_TAKEN)
lint: | $(READY) ## ruff: rules and format
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
check-variants: | $(READY) ## train every variant of the method for 20 steps, the compiled one too: minutes
	@$(TAKE_ARGS) SOCO_SLOW=1 $(PY) -m pytest tests/test_variants.py $(ARGS_TAKEN)
check-gpu: | $(READY) ## does this node compute what the book says, and how fast? QUICK=1: shorter; small on a CPU
	@$(PY) -m tests.gpu $(if $(QUICK),--quick) --results $(call q,$(RESULTS))
BENCH = $(PY) -m tests.speed.bench $(if $(IMAGES),--images $(call q,$(IMAGES))) --results $(call q,$(RESULTS))
bench: $(TOY_DATA) | $(READY) ## time every part beside its plain formulation, on IMAGES; tables go to RESULTS/bench
	@$(BENCH)
	@$(call NOTEBOOK,09_speed,speed) -p results $(call q,$(RESULTS))
##: bench-NAME views step proposals store readers startup: one of them
bench-%: $(TOY_DATA) | $(READY)
	@$(BENCH) $*
clean: ## remove caches; results and the environment stay
	@find . \( -path ./.venv -o -path ./.git -o -path ./data \) -prune -o -type d \( -name __pycache__ -o -name .pytest_cache -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
