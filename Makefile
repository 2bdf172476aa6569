# The book's commands. `make` lists the targets by group (`##@`), from the `##` behind them or, for a family, `##:` above it.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

#: * RUN=           name of the run, a folder under RESULTS (default: the target's own)
#: * PROFILE=toy    scale: a parameter file, toy (minutes on two cores) or paper
#: * IMAGES=        pictures to pretrain on: folder:PATH, coco:JSON, voc:ROOT, zip:FILE, list:FILE (default: the parameter file's)
#: * INIT=scratch   what a transfer starts from: a pretraining's run folder, a checkpoint, or scratch
#: * SET= SEED=0    other settings of a pretraining or transfer, such as SET='k: 8, steps: 200'; random seed
#: * GPUS=1 LAUNCH=  processes on each machine, one a GPU; launch options of a cluster, a file such as notebooks/params/launch-slurm.yaml
#:   RESULTS=results RUNS=  where run folders go; runs there, by name, for a report or a table of probes (default: the quickstart's)
#:   PROPOSALS=     folder of the proposals of IMAGES (default: data/<name of the pictures>-<a number of theirs>-proposals)
#:   STORE= FROM= TO= LAYOUT= GENERATOR=  the same folder; files for `make proposals-import` and `-export`, their layout, what made their boxes
#:   BENCHMARK=     one of the paper's benchmarks, such as coco-fpn-1x, at the scale of PROFILE (default: the parameter file's settings)
#:   TRAIN= TEST=   training and test data of a transfer, coco:JSON@IMAGES (default: the benchmark's or the parameter file's)
#:   VOC_TRAIN= VOC_TEST= LVIS_TRAIN= LVIS_TEST= NAMES=  the same of VOC and LVIS in `make benchmarks`; names for it and `data-check` (default: all)
#:   MODEL= SCORE=0.5 A= B=  of `make predict`: a finished transfer's folder, the least score kept; of `make compare`: two runs, folders or names
#:   SEEDS=0 JOBS=1  of a study: seeds, such as SEEDS=0,1,2; runs at a time, each with GPUS of its own (`make reproduce-toy`: 2)
#:   PLAN= MEASURE= of a study: 1 prints what there is, what would run and its hours; 1: from a step timed here if no run tells
#:   RECORDED= VARIANTS= BENCHMARKS=  of a study: 1 counts tracked records as runs; only these, and others in place of its own, a,b
#:   FRACTIONS= STARTS=  of `make worth`: shares of the labels (0.1,0.3,1); scratch, soco (pretrained here), run folders, checkpoint files ('scratch soco')
#:   NODES=1 RENDEZVOUS= RESTARTS=0  launch options: machines; host:port that all reach; times that all processes start anew after one died
#:   LAUNCHER=local PARTITION= MINUTES=240 CPUS=  launch options: local or slurm; of SLURM: minutes a job (requeued, it goes on), cores a node
#:   PYTHON= DETECTRON2=  of set-up: Python 3.11 to 3.13 (default: the first found); any pip specification; `pinned` goes back to the pinned one
#:   DEEP= QUICK= ARGS=  1: `make data-check` decodes all pictures; 1: `make check-gpu` is short; passed on by make test, lab, proposals, proposals-import
# The defaults, which hold unless make is given a value: a shell's own variable of such a name is not meant.
DEFAULTS := PROFILE=toy INIT=scratch SEED=0 SEEDS=0 RESULTS=results SCORE=0.5 $(addsuffix =,MODEL RUN IMAGES SET GPUS LAUNCH PROPOSALS BENCHMARK \
    TRAIN TEST VOC_TRAIN VOC_TEST LVIS_TRAIN LVIS_TEST RUNS A B NAMES JOBS PLAN MEASURE RECORDED VARIANTS BENCHMARKS FRACTIONS STARTS \
    STORE FROM TO LAYOUT GENERATOR NODES RENDEZVOUS RESTARTS LAUNCHER PARTITION MINUTES CPUS DEEP QUICK ARGS)
$(foreach default,$(DEFAULTS),$(eval $(default)))
VARIABLES := $(foreach default,$(DEFAULTS),$(firstword $(subst =, ,$(default)))) PYTHON DETECTRON2
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command%,$(origin $(name))),$(name)))
# Their values are taken as they were typed: a `$` is a dollar sign, not the beginning of one of make's own variables.
$(foreach name,$(filter $(VARIABLES),$(GIVEN)),$(eval override $(name) := $$(value $(name))))
# $(call q,TEXT) is one word of the shell, whatever the text holds; $(call last,PATH) its last part.
q = '$(subst ','\'',$1)'
last = $(lastword $(subst /, ,$1))
# The active virtual or conda environment, but never conda's base, which is nobody's project; else .venv, also when that is the active one.
ENV := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)),.venv)
ENV := $(if $(filter $(CURDIR)/.venv,$(ENV)),.venv,$(ENV))
PY := $(ENV)/bin/python
SCENES := data/scenes
TOY_DATA := $(if $(filter toy,$(PROFILE)),$(SCENES)/scenes.json $(SCENES)-test/scenes.json)
PICTURES := $(or $(IMAGES),$(if $(TOY_DATA),coco:$(SCENES)/annotations/instances_train.json,folder:imagenet/train))
# What was asked for, checked and put into words by the first Python that there is (soco_lib/book/asked.py); without any, setup says so.
PYTHONS := $(if $(PYTHON),$(call q,$(PYTHON)),python3.11 python3 python3.12 python3.13)
ASKED := $(if $(strip $(GIVEN) $(filter-out help variables,$(MAKECMDGOALS))),$(shell for python in $(call q,$(PY)) $(PYTHONS); do \
    "$$python" -IS soco_lib/book/asked.py $(call q,$(VARIABLES)) $(call q,$(MAKECMDGOALS)) $(call q,$(ENV)) $(call q,$(PICTURES)) \
        $(foreach name,$(VARIABLES) $(GIVEN),$(call q,$(name)=$(value $(name)))) 2>/dev/null && exit; done; \
    ! $(call q,$(PY)) -c '' 2>/dev/null || echo refused: soco_lib/book/asked.py does not run: take it from git again))
$(if $(filter refused:,$(firstword $(ASKED))),$(error $(wordlist 2,$(words $(ASKED)),$(ASKED))))
STORE := $(or $(STORE),$(PROPOSALS),$(firstword $(ASKED)))
QS := $(word 2,$(ASKED))
HOW := $(word 3,$(ASKED))
ARGS_TAKEN := $(wordlist 5,$(words $(ASKED)),$(ASKED))
PIP := $(PY) -m pip --disable-pip-version-check
# A stamp of what was set up: the checkout's path, then which Detectron2, which stays unless one is asked for. Rules name it order-only (`|`).
READY := $(ENV)/.soco-ready
PINNED := soco_lib/detectron2.txt
WANTED := $(or $(strip $(DETECTRON2)),$(shell sed -n 2p '$(READY)' 2>/dev/null),pinned)
CHANGED := $(shell printf '%s\n' $(call q,$(CURDIR)) $(call q,$(WANTED)) | cmp -s - '$(READY)' || echo changed)
.PHONY: changed $(shell sed -n 's/^\([a-z][a-z0-9-]*\):.*## .*/\1/p' Makefile)

##@ start
help: ## this list
	@awk '/^##@ / { print $$2 } /^##: / { name = $$2; sub(/^##: [^ ]* /, ""); printf "  %-19s %s\n", name, $$0 } \
	    /^[a-z][a-z0-9-]*:.*## / { name = $$1; sub(/:.*/, "", name); sub(/.*## /, ""); printf "  %-19s %s\n", name, $$0 }' Makefile
	@echo "make TARGET [VARIABLE=value]... with the variables used most:"; sed -n 's/^#: \*//p' Makefile
variables: ## every variable
	@sed -n 's/^#: //p' Makefile
setup: | $(READY) ## build .venv, or fill the active environment: dependencies, Detectron2 (every target does this first)
	@echo "$(ENV) is ready"
$(READY): pyproject.toml $(PINNED) $(CHANGED) | $(PY)
	@echo "setting up $(ENV): some minutes the first time"; rm -f $@ # until all of it is there, whatever it was before
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; $(PIP) install -q -e '.[test]'
ifeq ($(WANTED),pinned)
	@pins=$$(grep -o '^[^# ]*==[^ ]*' $(PINNED)); [ -z "$$($(PIP) freeze --all | grep -vxFf - <(echo "$$pins"))" ] || { \
	    $(PIP) uninstall -qq -y detectron2 sal-detectron2 lvis; \
	    $(PIP) install -q --target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" \
	        --no-deps --only-binary=:all: --python-version 3.10 --platform linux_x86_64 --require-hashes -r $(PINNED); }
else
	@$(PIP) uninstall -qq -y detectron2 sal-detectron2 && $(PIP) install -q --no-build-isolation $(call q,$(WANTED))
	@$(PIP) install -q --no-deps --require-hashes -r <(sed -n '/^lvis/,$$p' $(PINNED))
endif
	@$(PY) -I soco_lib/book/imports.py && printf '%s\n' $(call q,$(CURDIR)) $(call q,$(WANTED)) > $@
$(PY):
	@[ '$(ENV)' = .venv ] || { echo "setup: the active environment $(ENV) has no bin/python: deactivate it, and .venv is used" >&2; exit 1; }; \
	for python in $(PYTHONS); do \
	    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && exec "$$python" -m venv --clear .venv; \
	done; \
	echo "setup: "$(call q,$(or $(PYTHON),no python3 on the PATH))" is not Python 3.11 to 3.13: make setup PYTHON=/path/to/python3.11" >&2; exit 1
lab: | $(READY) ## open JupyterLab on notebooks/
	@JUPYTER_PREFER_ENV_PATH=1 PATH="$(abspath $(ENV))/bin:$$PATH" $(PY) -m jupyterlab $(ARGS_TAKEN) \
	    --ServerApp.root_dir=$(call q,$(CURDIR)) --LabApp.default_url=/lab/tree/notebooks # with this environment's kernel, not the home's
IN := --results $(call q,$(RESULTS))
# A notebook's product is its HTML, rendered last and put in place by a rename: it stands for the whole run.
NOTEBOOK = $(PY) -m soco_lib.book notebooks/$(1).ipynb $(IN) --run-name $(call q,$(or $(RUN),$(2)))
PROPOSE = $(if $(filter whole,$(STORE)),,$(PY) -m soco_lib.data.store --images $(call q,$(PICTURES)) --out $(call q,$(STORE)) &&)
DATA_FLAGS = -p images $(call q,$(PICTURES)) -p proposals $(call q,$(STORE))
RUN_FLAGS = -p seed '$(SEED)' -p launch $(call q,$(HOW)) -p overrides $(call q,{$(SET)})
# The quickstart: five notebooks, each made from what it needs. Its seed is its own, so that it is the same for everyone.
QS_PAGES := $(addprefix $(QS)-,proposals/01_proposals views/02_views soco/03_pretrain $(addsuffix /04_transfer,transfer scratch) report/05_report)
$(QS)-proposals/01_proposals.html: $(SCENES)/scenes.json
$(QS)-views/02_views.html $(QS)-soco/03_pretrain.html: $(QS)-proposals/01_proposals.html
$(QS)-transfer/04_transfer.html: $(QS)-soco/03_pretrain.html $(SCENES)-test/scenes.json
$(QS)-scratch/04_transfer.html: $(SCENES)-test/scenes.json $(SCENES)/scenes.json
$(QS)-report/05_report.html: $(QS)-scratch/04_transfer.html $(QS)-transfer/04_transfer.html
# A run older than what it was made from (not by a clock that was set back) is made anew; a newer one was interrupted and goes on.
$(QS_PAGES:%=%.html): | $(READY)
	@if [ '$(@D)/run.json' -ot '$<' ] && [ -z "$$(find '$<' -newermt now)" ]; then rm -rf '$(@D)'; fi; \
	    $(PY) -m soco_lib.book notebooks/$(basename $(@F)).ipynb $(IN) --run-name '$(notdir $(@D))' \
	    $(if $(TOGETHER),--label '$(notdir $(@D))') $(if $(filter %-transfer,$(@D)),-p init '$(QS)-soco')
# One thing at a time with all cores; but the two transfers, whose networks gain little from a second thread, side by side with half each.
$(if $(TOGETHER),,$(eval .NOTPARALLEL:))
quickstart: $(QS)-views/02_views.html $(QS)-soco/03_pretrain.html $(SCENES)-test/scenes.json ## the whole book, small, on embedded data: about ten minutes
	@OMP_NUM_THREADS=$$((($$(nproc 2>/dev/null || echo 2) + 1) / 2)) $(MAKE) --silent --jobs=2 TOGETHER=1 '$(QS)-report/05_report.html'
	@echo; cat '$(QS)-report/table.md'; printf '\nNotebooks as executed and as HTML (open %s-report/05_report.html first):\n' '$(QS)'
	@printf '  %s\n' '$(QS)'-*/*.html; printf '\n%s\n' "All of it as one site, with contents and search: make book" \
	    "Next: make lab; make proposals IMAGES=folder:/my/photos; make pretrain IMAGES=folder:/my/photos GPUS=2; make transfer INIT=$(RESULTS)/pretrain-toy"
book: | $(READY) ## a site of all executed notebooks, tables and pictures, RESULTS/book/index.html; installs Sphinx the first time
	@$(PY) -c 'import furo, myst_nb' 2>/dev/null || { echo "adding Sphinx to $(ENV)"; $(PIP) install -q --no-warn-conflicts -e '.[book]'; }
	@$(PY) -m soco_lib.book.site $(IN)

##@ look
data: $(SCENES)/scenes.json $(SCENES)-test/scenes.json ## draw the embedded scenes (data/scenes and data/scenes-test, COCO layout)
# One to three objects a scene, none small. data/scenes: to learn from, and a val split to develop on; data/scenes-test: to report.
$(SCENES)/scenes.json: | $(READY)
	@$(PY) -m soco_lib.scenes --most 3 --smallest 0.25 --out $(SCENES) --train 1500 --val 200
$(SCENES)-test/scenes.json: | $(READY)
	@$(PY) -m soco_lib.scenes --most 3 --smallest 0.25 --out $(SCENES)-test --train 0 --val 300 --seed 1
$(SCENES)-lvis/lvis_val.json: $(SCENES)/scenes.json | $(READY) # the same in LVIS layout
	@$(PY) -m soco_lib.transfer.make_lvis
proposals: $(TOY_DATA) | $(READY) ## proposals of IMAGES, and a look at them; proposals-import, proposals-export: other programs' files (variables)
	@$(if $(ARGS),$(patsubst %&&,% $(ARGS_TAKEN) &&,$(PROPOSE))) $(call NOTEBOOK,01_proposals,$(notdir $(STORE))) $(DATA_FLAGS) -p generator found
proposals-%: $(TOY_DATA) | $(READY)
	@$(PY) -m soco_lib.data.interchange $* $(foreach name,STORE FROM TO LAYOUT GENERATOR PICTURES,--$(name) $(call q,$($(name)))) $(ARGS_TAKEN)
views: $(TOY_DATA) | $(READY) ## the views that pretraining sees of IMAGES
	@$(PROPOSE) $(call NOTEBOOK,02_views,views-$(PROFILE)) $(DATA_FLAGS) -p config $(PARAMS)
data-check: | $(READY) ## what is odd about TRAIN, TEST, IMAGES (DEEP=1: decode all); without these, count NAMES against known totals
	@$(PY) -m soco_lib.figures.odd_data $(if $(DEEP),--deep) --out $(call q,$(RESULTS)/data-check) --train $(call q,$(TRAIN)) \
	    --test $(call q,$(TEST)) --images $(call q,$(IMAGES)) $(foreach name,$(NAMES),$(call q,$(name)))

##@ run
PARAMS = notebooks/params/pretrain-$(PROFILE).yaml
pretrain: $(TOY_DATA) | $(READY) ## pretrain on IMAGES with GPUS x NODES processes; goes on where it was interrupted
	@$(PY) -m soco_lib.runs.settings $(PARAMS) $(call q,{$(SET)}) $(call q,$(HOW)) && $(PROPOSE) \
	$(call NOTEBOOK,03_pretrain,pretrain-$(PROFILE)) $(DATA_FLAGS) $(RUN_FLAGS) -p config $(PARAMS)
join: | $(READY) ## on every other node: this node's part of the run RUN (NODES, GPUS, RENDEZVOUS as on the first)
	@$(PY) -m soco_lib.runs.launch join $(call q,$(RESULTS)/$(RUN)) --launch $(call q,$(HOW)) $(ARGS_TAKEN)
transfer: $(if $(findstring toy lvis,$(PROFILE) $(BENCHMARK)),$(SCENES)-lvis/lvis_val.json)
transfer: $(TOY_DATA) | $(READY) ## fine-tune a detector from INIT on TRAIN, or as BENCHMARK says, and evaluate it on TEST
	@$(call NOTEBOOK,04_transfer,transfer-$(if $(BENCHMARK),$(BENCHMARK)-)$(PROFILE)) $(RUN_FLAGS) -p config 'notebooks/params/transfer-$(PROFILE).yaml' \
	    -p init $(call q,$(INIT)) -p train $(call q,$(TRAIN)) -p test $(call q,$(TEST)) -p benchmark $(call q,$(BENCHMARK)) -p profile '$(PROFILE)'
predict: | $(READY) ## detect on IMAGES with the fine-tuned run MODEL: COCO results, counts a class, a contact sheet
	@$(call NOTEBOOK,11_predict,predict-$(call last,$(MODEL))) $(RUN_FLAGS) -p model $(call q,$(MODEL)) -p images $(call q,$(IMAGES)) -p score $(call q,$(SCORE))
benchmarks: $(TOY_DATA) | $(READY) ## every benchmark of the paper (or NAMES) from INIT, one after the other
	@names=$$($(PY) -m soco_lib.transfer.benchmarks $(foreach name,$(NAMES),$(call q,$(name)))); $(MAKE) $$names
OWN = $(if $(filter voc-%,$*),VOC_,$(if $(filter lvis-%,$*),LVIS_))
benchmark-%: $(TOY_DATA) | $(READY)
	@$(MAKE) transfer BENCHMARK='$*' TRAIN=$(call q,$($(OWN)TRAIN)) TEST=$(call q,$($(OWN)TEST)) \
	    RUN=$(call q,$(or $(RUN),$(call last,$(INIT)))-$*-$(PROFILE)-s$(SEED))
compare: | $(READY) ## two runs A and B: what differs in settings and metrics; of two transfers also curves, classes, errors, images
	@$(PY) -m soco_lib.transfer.compare $(call q,$(A)) $(call q,$(B)) $(IN) || { [ $$? = 3 ]; exit; }; \
	$(call NOTEBOOK,07_compare,compare-$(call last,$(A))-$(call last,$(B))) -p run_a $(call q,$(A)) -p run_b $(call q,$(B))
rerun: $(TOY_DATA) | $(READY) ## the finished or tracked run RUN once more from nothing, every number of both compared
	@$(subst &&,>/dev/null &&,$(PROPOSE)) $(PY) -m soco_lib.studies.rerun $(call q,$(RUN)) $(IN)
probe: | $(READY) ## class of labelled objects (TEST=coco:... or voc:..., learnt from TRAIN or half of TEST) from frozen features of INIT
	@$(PY) -m soco_lib.features.probe $(call q,$(INIT)) --data $(call q,$(TEST)) --fit $(call q,$(TRAIN))

##@ tables
TABLES = $(PY) -m soco_lib.tables $(IN)
CLAIMS = $(TABLES) --tables trials >/dev/null; $(call NOTEBOOK,10_claims,claims)
##: tableN 1 to 8, 10: the paper's table with our runs of it under RESULTS at PROFILE (all: both); 4 and 5: of the studies
table%: | $(READY)
	@$(TABLES) $(if $(filter 4,$*),--studies alignment,$(if $(filter 5,$*),--studies viewsize batchsize proposals momentum,--tables '$*')) \
	    --profile '$(PROFILE)'
tables: | $(READY) ## every table that has runs or tracked records; needs neither data nor a GPU
	@$(TABLES)
show: | $(READY) ## the run RUN, a folder or a tracked record: settings, state, sessions, metrics, the end of its log
	@$(PY) -m soco_lib.tables.show $(call q,$(RUN)) $(IN)
report: | $(READY) ## the table of RUNS beside the paper's
	@$(call NOTEBOOK,05_report,report) $(if $(RUNS),-p runs $(call q,$(word 4,$(ASKED))))
claims: $(SCENES)-test/scenes.json | $(READY) ## the claim table and notebook 10 from what runs and records there are
	@$(CLAIMS)
probe-table: | $(READY) ## mean and spread over seeds of the probed pretrainings RUNS, in RESULTS/RUN
	@$(PY) -m soco_lib.features.probe_table $(call q,$(RESULTS)/$(or $(RUN),probe-table)) $(foreach run,$(RUNS),$(call q,$(RESULTS)/$(run)))
gallery: quickstart claims | $(READY) ## put the quickstart's and the claims' figures and tables into the README
	@$(PY) -m soco_lib.book.gallery

##@ studies
STUDY_FLAGS = $(if $(PLAN),--plan) $(if $(MEASURE),--measure) $(if $(RECORDED),--recorded) $(IN)
STUDY = @status=0; $(PY) -m soco_lib.studies $(1) --profile '$(PROFILE)' --seeds '$(SEEDS)' --jobs '$(or $(JOBS),1)' --launch $(call q,$(HOW)) \
    --variants $(call q,$(VARIANTS)) --benchmarks $(call q,$(or $(BENCHMARKS),$(if $(filter %evidence-gpu,$@),none))) $(STUDY_FLAGS) || status=$$?; \
    $(if $(PLAN),exit $$status,$(PY) -m soco_lib.book.study $(1) --profile '$(PROFILE)' $(IN) --after $$status)
##: ablation-NAME labels growth evidence-gpu regions photographs longer detectors alignment viewsize batchsize proposals momentum (notebooks/studies says which tables)
ablation-%: $(TOY_DATA) | $(READY)
	$(call STUDY,$*)
##: pretrain-soco-NAME 100 400 star-400 c4-100 c4-400: the paper's pretrainings, with the transfers that score them
pretrain-soco-% evidence-%: $(TOY_DATA) | $(READY)
	$(call STUDY,$@)
table9: $(TOY_DATA) | $(READY) ## study of Table 9: pretraining data
	$(call STUDY,$@)
worth: | $(READY) ## is it worth it on your data? how many labels of TRAIN the STARTS save, by FRACTIONS of them, scored on TEST: one page
	@$(PY) -m soco_lib.book.worth $(IN) --launch $(call q,$(HOW)) $(if $(PLAN),--plan) $(if $(filter override,$(origin SEEDS)),--SEEDS $(SEEDS)) \
	    --SETTINGS $(call q,{$(SET)}) --PROPOSALS $(call q,$(STORE)) \
	    $(foreach name,RUN PROFILE IMAGES TRAIN TEST FRACTIONS STARTS BENCHMARK JOBS,--$(name) $(call q,$($(name))))
reproduce-toy: $(TOY_DATA) | $(READY) ## the paper's claims at toy scale: every study with its seeds, then the claim table (PLAN=1: what would run)
	@status=0; $(PY) -m soco_lib.studies.reproduce --jobs '$(or $(JOBS),2)' $(STUDY_FLAGS) || status=$$?; \
	if [ -z '$(PLAN)' ] && [ $$status != 143 ]; then { $(TABLES) --profile toy; $(CLAIMS); } || status=$$?; fi; exit $$status

##@ checks
test: | $(READY) ## run the tests, up to four at a time; ARGS='-k boxes' chooses among them, ARGS=-n0 runs one at a time
	@$(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS_TAKEN)
lint: | $(READY) ## ruff: rules and format
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
check-variants: | $(READY) ## train every variant of the method for 20 steps, the compiled one too: minutes
	@SOCO_SLOW=1 $(PY) -m pytest tests/test_variants.py $(ARGS_TAKEN)
check-gpu: | $(READY) ## does this node compute what the book says, and how fast? QUICK=1: shorter; small on a CPU
	@$(PY) -m tests.gpu $(if $(QUICK),--quick) $(IN)
BENCH = $(PY) -m tests.speed.bench $(if $(IMAGES),--images $(call q,$(IMAGES))) $(IN)
bench: $(TOY_DATA) | $(READY) ## time every part beside its plain formulation, on IMAGES; tables go to RESULTS/bench
	@$(BENCH) && $(call NOTEBOOK,09_speed,speed) -p results $(call q,$(RESULTS))
##: bench-NAME views step proposals store readers startup threads: one of them
bench-%: $(TOY_DATA) | $(READY)
	@$(BENCH) $*
clean: ## remove caches; results and the environment stay
	@rm -rf .pytest_cache .ruff_cache; find * -path data -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
