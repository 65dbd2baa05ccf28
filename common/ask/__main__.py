"""`python -m common.ask`."""

import sys

from common.ask.command import main

if __name__ == "__main__":
    sys.exit(main())
