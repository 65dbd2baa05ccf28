#!/usr/bin/env bash
# Run a training script in several processes on this machine (torchrun underneath).
#   ./scripts/dist_run_single.sh N SCRIPT CONFIG MODEL_DIR [flags …]
#   e.g. 4 vqa/train_end2end.py cfgs/vqa/base_4x16G_fp32.yaml output
# N is the number of GPUs, or of processes on the CPU where there is none. Paths are those of the
# folder VLBERT/. SCRIPT --help explains the flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then usage "${BASH_SOURCE[0]}"; fi
processes="$1"
prepare "$(realpath "${BASH_SOURCE[0]}")" 3 "${@:2}"
if [[ " ${COMMAND[*]} " == *" --help "* ]]; then exec "$PYTHON" "${COMMAND[@]}"; fi
exec "$PYTHON" -m common.training.processes "$processes" "${COMMAND[@]}" --dist
