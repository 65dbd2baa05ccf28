"""`python -m common.features`: import features of other systems, or extract those of pictures."""

import sys

from common.detector.command import main as extract
from common.features.command import EXTRACT, main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(extract(words[1:]) if words[:1] == [EXTRACT] else main(words))
