#!/usr/bin/env bash
# Test a finetuned LXMERT.
#   bash run/vqa_test.bash GPU NAME --load snap/vqa/NAME/BEST --test minival|test [flags …]
# minival prints the accuracy; both write predictions in the EvalAI form to snap/vqa/NAME/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.bash"
start vqa "${BASH_SOURCE[0]}" "$@"
exec "$PYTHON" src/tasks/vqa.py --gpus "$1" --version "$2" --output "$OUTPUT" "${@:3}"
