"""Pretrain VL-BERT on captions and texts; see `--help`."""

import sys

from vlbert.pretraining import main

if __name__ == "__main__":
    sys.exit(main())
