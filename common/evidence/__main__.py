"""`python -m common.evidence`."""

import sys

from common.evidence.command import main

if __name__ == "__main__":
    sys.exit(main())
