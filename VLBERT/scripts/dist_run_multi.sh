#!/usr/bin/env bash
# Run a training script in several processes on each of several machines (torchrun).
#   ./scripts/dist_run_multi.sh MACHINES RANK ADDRESS N SCRIPT CONFIG MODEL_DIR [flags …]
#   e.g. 2 0 10.0.0.1 4 vqa/train_end2end.py cfgs/vqa/base_4x16G_fp32.yaml output
# Start it on every machine with its own RANK, from 0; ADDRESS is that of machine 0, which the others
# reach on MASTER_PORT (default 29500). N is the number of GPUs of a machine, or of processes on its
# CPU. Paths are those of the folder VLBERT/; it has to be the same on all machines.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ || ! "${2:-}" =~ ^[0-9]+$ || ! "${4:-}" =~ ^[1-9][0-9]*$ ]]; then
    usage "${BASH_SOURCE[0]}"
fi
machines="$1" rank="$2" address="$3" processes="$4"
prepare "$(realpath "${BASH_SOURCE[0]}")" 3 "${@:5}"
exec "$PYTHON" -m torch.distributed.run --nnodes "$machines" --node_rank "$rank" \
    --master_addr "$address" --master_port "${MASTER_PORT:-29500}" \
    --nproc_per_node "$processes" "${COMMAND[@]}" --dist
