"""`make mutants`: put every mistake of the table into a copy of the code and run its tests.

    python -m tests.mutants [--jobs N] [--only TEXT]

Says which mistakes nobody noticed, and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from tqdm import tqdm

from common.files import repository_root
from tests.mutants.table import MUTANTS, Mutant

ROOT = repository_root()
COPIED = ("common", "LXMERT", "VLBERT", "ViLBERT", "tests", "images", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("snap", "output", "save", "data", "__pycache__", "*.png")
LIMIT = 300.0  # seconds: a mistake that hangs is noticed


def copy_code(folder: Path) -> Path:
    """A copy of what is tested and of its tests."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = LEFT_OUT if name != "common" else shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def run_tests(folder: Path, tests: str) -> int:
    """The exit status of some tests on the code of a folder; 124 where they hang."""
    places = (folder, folder / "LXMERT" / "src", folder / "VLBERT", folder / "ViLBERT")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        return subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
                *("-m", "not slow", *tests.split()),
            ],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return 124


def is_noticed(mutant: Mutant, folder: Path) -> bool:
    """Whether the tests of a mistake fail on a copy of the code that has it."""
    path = folder / mutant.path
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.before, mutant.after, 1), encoding="utf-8")
    try:
        return run_tests(folder, mutant.tests) not in (0, 5)
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose name has TEXT")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if args.only in m.name]
    gone = [m.name for m in chosen if m.before not in (ROOT / m.path).read_text(encoding="utf-8")]
    if gone:
        print("not in the code any more:", *gone, sep="\n  ")
        return 1
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folders: Queue[Path] = Queue()
        for number in range(args.jobs):
            folders.put(copy_code(Path(place) / str(number)))
        bar = tqdm(total=len(chosen), unit="mistake")

        def judge(mutant: Mutant) -> bool:
            folder = folders.get()
            try:
                return is_noticed(mutant, folder)
            finally:
                folders.put(folder)
                bar.update()

        with bar, ThreadPoolExecutor(args.jobs) as pool:
            noticed = list(pool.map(judge, chosen))
    lived = [m for m, seen in zip(chosen, noticed, strict=True) if not seen]
    for mutant in lived:
        print(f"unnoticed: {mutant.name}\n           by {mutant.tests}")
    minutes = (time.monotonic() - start) / 60
    print(f"{len(chosen) - len(lived)} of {len(chosen)} mistakes noticed, {minutes:.1f} minutes")
    return bool(lived)


if __name__ == "__main__":
    sys.exit(main())
