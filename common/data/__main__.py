"""`python -m common.data`."""

import sys

from common.data.command import MAKE, main
from common.own_data.command import main as make

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(make(words[1:]) if words[:1] == [MAKE] else main(words))
