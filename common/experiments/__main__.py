"""`python -m common.experiments`."""

import sys

from common.experiments.command import main

if __name__ == "__main__":
    sys.exit(main())
