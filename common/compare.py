"""Compare runs: `python -m common.compare [ROOT …] [--out results]`.

Finds every `result.json` below the given folders, prints the table of strategies, and writes it as
Markdown, JSON, a plot and a self-contained HTML report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import DataError
from common.projects import projects
from common.results.comparison import copy_decision_maps, write_comparison
from common.results.files import FILE_NAME, read_results
from common.results.table import format_table
from common.voice import spoken


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.compare",
        description=f"Compare runs: read every {FILE_NAME} below the given folders, print the "
        "table of strategies, and write comparison.md, .json, .png and .html.",
        epilog="Runs that differ only in their seed become one row, mean ± sample standard "
        "deviation; backbones of one size on one data set share a table. Exit status: 0 all "
        "read, 1 some files were corrupt (the others are compared all the same), 2 nothing "
        "to compare or nowhere to write.",
    )
    parser.add_argument(
        "roots",
        nargs="*",
        default=["."],
        metavar="ROOT",
        help="folder to search, or a result.json (default: the current folder); "
        "hidden folders are not entered",
    )
    parser.add_argument(
        "--out",
        default="results",
        metavar="DIR",
        help="folder for the four files (default: %(default)s)",
    )
    parser.add_argument(
        "--visualizations",
        metavar="DIR",
        help="also draw the decision map of each run into this folder",
    )
    return parser


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        results, problems = read_results(options.roots)
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if not results:
            where = ", ".join(map(str, options.roots))
            examples = [f"`make {name}-train STRATEGY=SpotTune_Block`" for name in projects()]
            raise DataError(
                f"no readable {FILE_NAME} below {where}; train something first, for "
                f"example {' or '.join(examples)}, or name the folders that hold runs"
            )
        write_comparison(results, options.out, problems)
        maps = copy_decision_maps(results, options.visualizations) if options.visualizations else []
    except OSError as error:
        print(
            f"error: cannot write {error.filename or options.out}: {error.strerror}",
            file=sys.stderr,
        )
        return 2
    if maps:
        print(f"{len(maps)} decision maps in {options.visualizations}")
    print(f"report: {Path(options.out) / 'comparison.html'}\n")
    print(format_table(results), end="")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
