"""`python -m common.data`."""

import sys

from common.data.command import main

if __name__ == "__main__":
    sys.exit(main())
