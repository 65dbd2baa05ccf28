"""Measure retrieval: pairs per second; see `--help`."""

import sys

from vilbert.retrieval_bench import main

if __name__ == "__main__":
    sys.exit(main())
