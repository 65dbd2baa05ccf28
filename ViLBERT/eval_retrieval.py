"""Retrieve images by captions, and captions by images; see `--help`."""

import sys

from vilbert.retrieval_command import main

if __name__ == "__main__":
    sys.exit(main())
