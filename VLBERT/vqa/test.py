"""Predict the answers of an image set with a finetuned VL-BERT; see `--help`."""

import sys

from vlbert.testing import main

if __name__ == "__main__":
    sys.exit(main())
