"""Put generated tables into README files.

    python -m common.readme [README.md …] [--check]

A block between `<!-- results: FILE -->` and `<!-- end of results -->` is replaced by the content of
FILE (relative to the repository), so that no number in a README is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError
from common.files import repository_root, write_bytes
from common.projects import projects
from common.voice import spoken

_BLOCK = re.compile(r"(<!-- results: (?P<file>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def readmes() -> list[str]:
    """That of the repository and those of the backbones, relative to the repository."""
    return ["README.md", *(f"{found.folder}/README.md" for found in projects().values())]


def fill(text: str, root: Path) -> str:
    """The text with every block filled from its file below `root`.

    Raises:
        DataError: a named file is missing, or a block has no end.
    """
    if text.count("<!-- results: ") != len(_BLOCK.findall(text)):
        raise DataError("a `<!-- results: FILE -->` has no `<!-- end of results -->` after it")

    def content(match: re.Match[str]) -> str:
        path = root / match["file"]
        if not path.is_file():
            raise DataError(f"{path} is missing: make it with the command beside its block")
        return f"{match[1]}{path.read_text(encoding='utf-8').strip()}\n{match[3]}"

    return _BLOCK.sub(content, text)


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status (1 with --check if a file is out of date)."""
    parser = argparse.ArgumentParser(
        prog="python -m common.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, help=f"default {', '.join(readmes())}")
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    options = parser.parse_args(arguments)
    root = repository_root()
    stale = 0
    for path in options.files or [root / name for name in readmes()]:
        text = path.read_text(encoding="utf-8")
        filled = fill(text, root)
        if filled == text:
            continue
        stale += 1
        print(f"{path}: {'out of date' if options.check else 'updated'}")
        if not options.check:
            write_bytes(path, filled.encode())
    return int(options.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
