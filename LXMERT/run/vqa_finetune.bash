#!/usr/bin/env bash
# Finetune LXMERT on visual question answering.
#   bash run/vqa_finetune.bash GPU NAME [flags …]      e.g. 0 v1 --strategy=SpotTune_Block
# GPU is a number or `cpu`; NAME is the run's folder snap/vqa/NAME. Further flags may override the
# ones below; python src/tasks/vqa.py --help explains them. The hyper-parameters are the recipe of
# the model's size: for --size base upstream's (batch 32, BertAdam, learning rate 5e-5, 4 epochs).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
start vqa "${BASH_SOURCE[0]}" "$@"
keep_code "$@"
exec "$PYTHON" src/tasks/vqa.py --gpus "$1" --version "$2" \
    --loadLXMERTQA default --output "$OUTPUT" "${@:3}"
