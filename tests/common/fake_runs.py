"""Stands in for the run scripts: `fake_runs.py train|test GPU NAME [flags …]` in LXMERT/,
`fake_runs.py vlbert GPU NAME [flags …]` in VLBERT/ and `fake_runs.py vilbert …` in ViLBERT/.

It writes what a run would leave behind, at once. Every call is a line of `calls.txt` in the folder
FAKE_RUNS; a run whose name has a line of `broken.txt` in it fails, after it has saved.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.common.result_examples import (
    lxmert_layout,
    make_result,
    single_stream_layout,
    write_result,
)

VAL = {
    "Frozen": 80.0,
    "standard": 82.0,
    "SpotTune_Block": 83.0,
    "SpotTune": 84.0,
    "BlockDrop": 79.0,
}
SMALL = (2, 2, 2)
FOLDERS = {
    "train": "snap/vqa/{}",
    "test": "snap/vqa/{}",
    "vlbert": "output/vl-bert/easy_vqa/{}/train+nominival_train",
    "vilbert": "save/VQA_easy_vqa_small-{}",
}


def main(mode: str, gpu: str, name: str, *flags: str) -> int:
    """Play one run or one test of it."""
    folder = Path(FOLDERS[mode].format(name))
    control = Path(os.environ["FAKE_RUNS"])
    with open(control / "calls.txt", "a", encoding="utf-8") as file:
        file.write(" ".join([mode, gpu, name, *flags]) + "\n")
    if mode == "test":
        rows = json.loads(Path(os.environ["FAKE_MINIVAL"]).read_text())
        predictions = [{"question_id": row["question_id"], "answer": "yes"} for row in rows]
        (folder / "minival_predict.json").write_text(json.dumps(predictions))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    for checkpoint in ("LAST", "BEST"):
        (folder / f"{checkpoint}.safetensors").touch()
    broken = control / "broken.txt"
    if broken.exists() and any(part in name for part in broken.read_text().split()):
        print("step 1\nerror: no memory left on the moon", file=sys.stderr)
        return 2
    write_result(folder, fake_result(name, flags, "lxmert" if mode == "train" else mode))
    return 0


def fake_result(name: str, flags: Sequence[str], backbone: str = "lxmert") -> dict[str, Any]:
    """The result of a run with these flags; its accuracy grows by a per cent with every seed."""
    given = dict(itertools.pairwise(flags))
    strategy, seed = given["--strategy"], int(given.get("--seed", 9595))
    decides = "Tune" in strategy or "Drop" in strategy
    layout = None
    if decides:
        layout = (
            lxmert_layout(strategy, SMALL, 4)
            if backbone == "lxmert"
            else single_stream_layout(strategy, 4, 4)
        )
    result = make_result(
        strategy,
        backbone=backbone,
        seed=seed,
        layout=layout,
        name=name,
        val=VAL.get(strategy, 81.0) + (seed - 9595) % 100,
        dataset=given.get("--dataset") or given.get("--set", "=easy_vqa").partition("=")[2],
    )
    variant = "started" if given.get("--policy-training") == "started" else None
    return result | {"policy": given.get("--policy", result["policy"]), "variant": variant}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
