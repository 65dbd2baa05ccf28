"""`python -m common.features`."""

import sys

from common.features.command import main

if __name__ == "__main__":
    sys.exit(main())
