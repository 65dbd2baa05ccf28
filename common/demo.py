"""`make demo`: finetune a small pretrained model with five strategies and compare them.

    python -m common.demo [--quick] [--strategies Frozen,standard,…] [--gpu cpu]

Every run goes through the backbone's own run script on the embedded data; then the runs are
compared: results/, visualizations/, and a table as the last thing on the screen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.compare import copy_decision_maps, write_comparison
from common.errors import AdaptiveError, ConfigError
from common.files import repository_root
from common.launch import RUN_SCRIPTS, Launcher, RunScript
from common.result_files import find_results
from common.result_table import format_table
from common.strategies import find_strategy

STRATEGIES = ("Frozen", "standard", "SpotTune_Block", "SpotTune", "BlockDrop")
FULL = ("--questions", "4000", "--epochs", "10")
QUICK = ("--questions", "1500", "--epochs", "2", "--tiny")


def run_strategy(script: RunScript, strategy: str, gpu: str, flags: Sequence[str],
                 launcher: Launcher) -> Path:
    """Finetune with one strategy through the backbone's run script; returns the run's folder."""
    name = f"demo_{strategy}"
    command = script.train(gpu, name, ["--dataset", "easy_vqa", f"--strategy={strategy}",
                                       "--overwrite", *flags])
    print(f"\n== {strategy}: in {script.folder}/: {' '.join(command)}", flush=True)
    if status := launcher.run(command, script.home):
        raise ConfigError(f"the run {name} failed with exit status {status}; its messages are "
                          f"above and in {script.folder}/{script.runs}/{name}/log.log")
    return script.run_folder(name)


def run_demo(strategies: Sequence[str], gpu: str, flags: Sequence[str], out: Path,
             maps: Path) -> None:
    """All strategies on all backbones, then tables, plots and report."""
    start = time.perf_counter()
    with Launcher() as launcher:
        folders = [run_strategy(script, strategy, gpu, flags, launcher)
                   for script in RUN_SCRIPTS.values() for strategy in strategies]
    results = find_results(folders)
    shutil.rmtree(out / "runs", ignore_errors=True)
    write_comparison(results, out)
    for folder in folders:
        target = out / "runs" / folder.name
        target.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "report.html"):
            if (folder / name).exists():
                shutil.copy(folder / name, target / name)
    pictures = copy_decision_maps(results, maps)
    root = repository_root()
    shown = [path.relative_to(root) if path.is_relative_to(root) else path
             for path in (out / "comparison.html", out / "comparison.md", maps)]
    print(f"\nreport: {shown[0]}, table: {shown[1]}, {len(pictures)} decision maps: {shown[2]}/")
    print(f"made in {(time.perf_counter() - start) / 60:.1f} minutes\n")
    print(format_table(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m common.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about two minutes instead of ten")
    parser.add_argument("--strategies", default=",".join(STRATEGIES),
                        help=f"with commas between (default {','.join(STRATEGIES)})")
    parser.add_argument("--gpu", default=os.environ.get("GPU", "cpu"), help="number or cpu")
    parser.add_argument("--out", type=Path, default=None, help="default results/ or results/quick/")
    parser.add_argument("--visualizations", type=Path, default=None,
                        help="folder of the decision maps (default visualizations/, with --quick "
                             "inside the results)")
    options = parser.parse_args(arguments)
    root = repository_root()
    out = options.out or root / "results" / ("quick" if options.quick else "demo")
    maps = options.visualizations or (out / "visualizations" if options.quick
                                      else root / "visualizations")
    try:
        strategies = [find_strategy(name)[0].name for name in options.strategies.split(",")]
        run_demo(strategies, options.gpu, QUICK if options.quick else FULL, out, maps)
    except AdaptiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
