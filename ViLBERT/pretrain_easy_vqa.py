"""Pretrain a small ViLBERT on the embedded data; see `--help`."""

import sys

from vilbert.pretraining import main

if __name__ == "__main__":
    sys.exit(main())
