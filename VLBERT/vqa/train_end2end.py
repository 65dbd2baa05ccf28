"""Finetune VL-BERT on visual question answering; see `--help`."""

import sys

from vlbert.finetuning import main

if __name__ == "__main__":
    sys.exit(main())
