#!/usr/bin/env bash
# Pretrain LXMERT: masked words, masked regions, matching, question answering.
#   bash run/lxmert_pretrain.bash GPU [flags …]
# Snapshots go to snap/pretrain/lxmert; python src/pretrain/lxmert_pretrain.py --help explains flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
start pretrain "${BASH_SOURCE[0]}" "${1:-}" lxmert "${@:2}"
keep_code "$@"
exec "$PYTHON" src/pretrain/lxmert_pretrain.py --gpus "$1" \
    --taskMatched --taskMaskLM --taskObjPredict --taskQA --visualLosses obj,attr,feat \
    --wordMaskRate 0.15 --objMaskRate 0.15 --output "$OUTPUT" "${@:2}"
