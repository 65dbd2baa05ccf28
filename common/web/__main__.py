"""`python -m common.web`."""

import sys

from common.web.command import main

if __name__ == "__main__":
    sys.exit(main())
