"""The launch scripts of all backbones: interpreters and folders that are named from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import repository_root

ROOT = repository_root()
HELP = {
    "lxmert": ["LXMERT/run/vqa_finetune.bash", "cpu", "name", "--help"],
    "vlbert": ["VLBERT/scripts/nondist_run.sh", "vqa/train_end2end.py", "--help"],
}


def script(folder: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / words[0]), *words[1:]],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("name", HELP)
@pytest.mark.slow
def test_an_interpreter_may_be_named_relative_to_the_caller_s_folder(tmp_path: Path, name):
    (tmp_path / "py").symlink_to(sys.executable)
    found = script(tmp_path, HELP[name], PYTHON="./py")
    assert found.returncode == 0, found.stderr
    assert "usage: " in found.stdout
    assert script(tmp_path, HELP[name], PYTHON="./nobody").returncode != 0


def test_a_missing_name_is_said_with_the_usage(tmp_path: Path):
    for words in (["LXMERT/run/vqa_finetune.bash", "0", "--tiny"],):
        found = script(tmp_path, words)
        assert found.returncode == 2 and "NAME is missing before --tiny" in found.stderr
        assert "bash run/vqa_finetune.bash GPU NAME" in found.stderr
    words = ["VLBERT/scripts/nondist_run.sh", "vqa/train_end2end.py", "cfgs/x.yaml", "--tiny"]
    found = script(tmp_path, words)
    assert found.returncode == 2 and "nondist_run.sh SCRIPT CONFIG MODEL_DIR" in found.stderr


def test_missing_files_are_named_whole(tmp_path: Path):
    words = ["LXMERT/run/vqa_finetune.bash", "cpu", "missing_files", "--dataset", "vqa"]
    more = ["--data", "mydata", "--size", "small", "--loadLXMERTQA", "", "--fromScratch"]
    found = script(tmp_path, [*words, *more, "--no-tensorboard"], PYTHON=sys.executable)
    assert found.returncode == 2
    assert f"  {ROOT / 'LXMERT' / 'mydata' / 'vqa' / 'train.json'}" in found.stderr
    subprocess.run(["rm", "-rf", ROOT / "LXMERT/snap/vqa/missing_files"], check=True)
