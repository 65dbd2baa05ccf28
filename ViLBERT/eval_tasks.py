"""Answer questions with a finetuned ViLBERT; see `--help`."""

import sys

from vilbert.finetuning import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
