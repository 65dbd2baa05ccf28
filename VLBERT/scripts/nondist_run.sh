#!/usr/bin/env bash
# Run a training script in one process; on a machine with GPUs in one for each of the config's GPUS.
#   ./scripts/nondist_run.sh SCRIPT CONFIG MODEL_DIR [flags …]
#   e.g. vqa/train_end2end.py cfgs/easy_vqa/base.yaml output --strategy SpotTune_Block
# Paths are those of the folder VLBERT/. SCRIPT --help explains the flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
prepare "$(realpath "${BASH_SOURCE[0]}")" 3 "$@"
exec "$PYTHON" "${COMMAND[@]}"
