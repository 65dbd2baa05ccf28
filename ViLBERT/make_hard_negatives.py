"""Find the images that look most alike, for retrieval; see `--help`."""

import sys

from vilbert.hard_negatives import main

if __name__ == "__main__":
    sys.exit(main())
