"""Finetune ViLBERT on a task; see `--help`."""

import sys

from vilbert.finetuning import train

if __name__ == "__main__":
    sys.exit(train())
