"""Pretrain LXMERT; see `--help`."""

import sys

from lxrt.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
