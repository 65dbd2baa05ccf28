"""`python -m common.attention`."""

import sys

from common.attention.command import main

if __name__ == "__main__":
    sys.exit(main())
