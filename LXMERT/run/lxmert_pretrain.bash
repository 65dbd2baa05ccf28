#!/usr/bin/env bash
# Pretrain LXMERT: masked words, masked regions, matching, question answering.
#   bash run/lxmert_pretrain.bash GPU [flags …]      e.g. 0,1,2,3 --dataset lxmert
# GPU is a number, several with commas between, or `cpu`. Snapshots go to snap/pretrain/lxmert. All
# objectives are trained unless some are named (--taskMaskLM …). With --dataset lxmert splits, rates
# and hyper-parameters are upstream's. Weights start at random values unless --bert, --load or
# --loadLXMERT is given; python src/pretrain/lxmert_pretrain.py --help explains every flag.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
start pretrain "${BASH_SOURCE[0]}" "${1:-}" lxmert "${@:2}"
keep_code "$@"
scratch=(--fromScratch)
if [[ " ${*:2} " == *" --bert"[\ =]* ]]; then scratch=(); fi
exec "$PYTHON" src/pretrain/lxmert_pretrain.py --gpus "$1" ${scratch[@]+"${scratch[@]}"} \
    --output "$OUTPUT" "${@:2}"
