"""`python -m common.bench`."""

import sys

from common.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
