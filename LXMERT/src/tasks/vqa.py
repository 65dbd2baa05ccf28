"""Finetune or test LXMERT on visual question answering; see `--help`."""

import sys

from lxrt.finetuning import main

if __name__ == "__main__":
    sys.exit(main())
