"""LXMERT with adaptive attention: train or test it; see `--help`."""

import sys

from lxrt.adaptive import main

if __name__ == "__main__":
    sys.exit(main())
