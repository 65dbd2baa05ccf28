"""Pretrain ViLBERT on images with captions; see `--help`."""

import sys

from vilbert.concap import main

if __name__ == "__main__":
    sys.exit(main())
