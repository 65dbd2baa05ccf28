"""Pretrain LXMERT; see `--help`."""

import sys

from lxrt.pretraining import main

if __name__ == "__main__":
    sys.exit(main())
