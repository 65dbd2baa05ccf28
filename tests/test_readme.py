"""Every command in a README is executed, or parsed where it needs data or minutes."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from common.files import repository_root
from common.readme import fill, main
from tests.common.own_data.files import write_shapes

ROOT = repository_root()
READMES = (
    "README.md",
    "CONTRIBUTING.md",
    "LXMERT/README.md",
    "VLBERT/README.md",
    "ViLBERT/README.md",
    "common/README.md",
    "images/README.md",
    "results/README.md",
    "visualizations/README.md",
    "tests/README.md",
)
ENVIRONMENT = os.environ | {
    "PYTHON": sys.executable,
    "OMP_WAIT_POLICY": "passive",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
FEWER = "--questions 64 --epochs 1 --tiny --train train --valid nominival --overwrite --quiet"


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for block in blocks(name, "bash") for line in block.splitlines() if line.strip()]
    inline = re.findall(r"`((?:bash run/|\./scripts/|make |torchrun |python )[^`]*)`", text)
    return list(dict.fromkeys(lines + inline))


ALL = [(name, command) for name in READMES for command in commands(name)]


def test_the_readmes_have_commands():
    assert len(ALL) > 20
    assert ("README.md", "make demo") in ALL and ("README.md", "make test") in ALL


@pytest.mark.parametrize(("name", "command"), [c for c in ALL if c[1].startswith("make ")])
def test_every_make_target_exists(name, command):
    found = subprocess.run(
        ["make", "-n", "-B", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


@cache
def help_of(*words: str) -> str:
    """What `python -m MODULE [COMMAND] --help` prints, without a process and its imports.

    That every command starts in a process of its own is in `common/test_packages.py`.
    """
    module, *more = words
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as shown,
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", [module, *more, "--help"])
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    return shown.getvalue()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # `help_of`
@pytest.mark.parametrize(
    ("name", "command"),
    [c for c in ALL if c[1].startswith("python -m") and "distributed" not in c[1]],
)
def test_every_module_command_parses(name, command):
    words = shlex.split(command.split("#")[0])
    shown = help_of(words[2])
    paths = ("-", "LXMERT", "VLBERT", "ViLBERT")
    sub = words[3] if len(words) > 3 and not words[3].startswith(paths) else None
    if sub is not None:
        assert sub in shown, f"{sub} is not in the help of {words[2]}"
        shown = help_of(words[2], sub)
    for word in (w for w in [sub, *words[3:]] if w and (w.startswith("--") or w == sub)):
        assert word in shown, f"{word} is not in the help of {words[2]}"


@pytest.mark.parametrize(("name", "command"), [c for c in ALL if c[1].startswith("bash run/")])
def test_every_run_script_exists_and_its_flags_are_known(name, command):
    from lxrt.finetuning import PROGRAM
    from lxrt.pretraining import pretrain_parser

    words = shlex.split(command)
    assert (ROOT / "LXMERT" / words[1]).is_file()
    parser = pretrain_parser() if "pretrain" in words[1] else PROGRAM.parser()
    flags = words[3:] if "pretrain" in words[1] else words[4:]
    assert parser.parse_args(flags) is not None


@pytest.mark.parametrize(
    ("name", "command"), [c for c in ALL if re.match(r"python3? train\.py", c[1])]
)
def test_the_flags_of_the_adaptive_lxmert_are_known(name, command):
    from lxrt.adaptive import PROGRAM

    assert (ROOT / Path(name).parent / "train.py").is_file()
    assert PROGRAM.parser().parse_args(shlex.split(command)[2:]) is not None


VLBERT = [c for c in ALL if c[1].startswith(("./scripts/", "python vqa/", "python pretrain/"))]


@pytest.mark.parametrize(("name", "command"), VLBERT)
def test_every_command_of_vlbert_names_its_files_and_its_flags_are_known(name, command):
    """The launchers' own arguments come before the script, its config and its folder."""
    from vlbert.config import find_config
    from vlbert.options import train_parser
    from vlbert.testing import parser

    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    for path in (words[0], words[place]):
        assert path == "python" or (ROOT / "VLBERT" / path).is_file(), path
    rest = words[place + 1 :]
    if words[0] != "python":
        assert words[0].endswith(
            {0: "nondist_run.sh", 1: "dist_run_single.sh", 4: "dist_run_multi.sh"}[place - 1]
        )
        rest = ["--cfg", rest[0], "--model-dir", *rest[1:]]
    if "--help" in rest:
        return
    if words[place] == "pretrain/train_end2end.py":
        from vlbert.pretraining import pretrain_parser

        found = pretrain_parser().parse_args(rest)
    else:
        chosen = parser() if words[place] == "vqa/test.py" else train_parser("", None)
        found = chosen.parse_args(rest)
    assert find_config(ROOT / "VLBERT" / found.cfg).is_file()


def shown_by(block: str, folder: Path) -> str:
    """What the commands of a block print, every one of which has to succeed."""
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_the_first_commands_of_vlbert_run(tmp_path):
    """The block a newcomer copies, word for word but for fewer questions and another folder."""
    block = next(b for b in blocks("VLBERT/README.md", "bash") if "nondist_run" in b)
    block = block.replace(" output ", f" {tmp_path} ")
    block = block.replace("output/output", f"{tmp_path}/output")
    block = block.replace("--epochs 2", "--epochs 1 --set DATASET.TOY=true --quiet")
    block = block.replace("--split minival", "--split minival --set DATASET.TOY=true")
    shown = shown_by(block, ROOT / "VLBERT")
    assert "minival of easy_vqa, SpotTune_Block: overall" in shown
    assert "decided   SpotTune_Block, the policy's likelier decision: " in shown


LAUNCHED = [c for c in ALL if c[1].startswith(("torchrun ", "python -m torch.distributed."))]


@pytest.mark.parametrize(("name", "command"), LAUNCHED)
def test_every_torchrun_command_parses(name, command):
    from torch.distributed.run import parse_args

    from lxrt.finetuning import PROGRAM

    words = shlex.split(command)
    given = parse_args(words[1 if words[0] == "torchrun" else 3 :])
    folder = Path(name).parent
    script = given.training_script
    make = vilbert_parsers()[script] if folder.name == "ViLBERT" else PROGRAM.parser
    assert (ROOT / folder / script).is_file()
    assert make().parse_args(given.training_script_args) is not None


VILBERT = [c for c in ALL if re.match(r"python \w+\.py ", c[1]) and c[0] == "ViLBERT/README.md"]


@pytest.mark.parametrize(("name", "command"), VILBERT)
def test_every_command_of_vilbert_names_its_files_and_its_flags_are_known(name, command):
    _, script, *flags = shlex.split(command)
    found = vars(vilbert_parsers()[script]().parse_args(flags))
    assert (ROOT / "ViLBERT" / script).is_file()
    for key in ("config_file", "tasks_file"):
        path = found.get(key)
        assert path is None or (ROOT / "ViLBERT" / path).is_file(), path


def vilbert_parsers() -> dict[str, Callable[[], argparse.ArgumentParser]]:
    """Of its scripts."""
    from vilbert.concap import concap_parser
    from vilbert.finetuning import EVALUATE, TRAIN
    from vilbert.hard_negatives import make_parser as hard_negatives_parser
    from vilbert.pretraining import pretrain_parser
    from vilbert.retrieval_bench import make_parser as bench_parser
    from vilbert.retrieval_command import RETRIEVE

    return {
        "train_tasks.py": TRAIN.parser,
        "eval_tasks.py": EVALUATE.parser,
        "eval_retrieval.py": RETRIEVE.parser,
        "pretrain_easy_vqa.py": pretrain_parser,
        "train_concap.py": concap_parser,
        "make_hard_negatives.py": hard_negatives_parser,
        "bench_retrieval.py": bench_parser,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("python train_tasks.py --tasks 6-7", "val of VCR_QA-R, SpotTune_Block: overall"),
        ("python train_tasks.py --tasks 9", "image → text: R@1"),
        ("python train_concap.py --dataset", "held out masked_lm_loss"),
        ("python -m common.data easy_vqa", "val of Colours, SpotTune_Block: overall"),
    ],
)
def test_the_blocks_of_vilbert_s_tasks_run(first, said):
    """Word for word but for fewer samples and another name."""
    home = ROOT / "ViLBERT"
    before = {path for part in ("save", "results") for path in (home / part).glob("*")}
    block = next(b for b in blocks("ViLBERT/README.md", "bash") if b.startswith(first))
    for name in ("vcr", "retrieval", "captions", "colours"):
        block = block.replace(f"--save_name {name}", f"--save_name {name}_readme_test --quiet")
    if "train_tasks" in block:
        block = block.replace("--tiny", "--tiny --questions 64 --epochs 1 --no-plots")
    try:
        shown = shown_by(block, home)
        assert said in shown
    finally:
        made = {path for part in ("save", "results") for path in (home / part).glob("*")} - before
        subprocess.run(["rm", "-rf", *map(str, made)], check=True)


@pytest.mark.slow
def test_the_first_commands_of_vilbert_run():
    """The block a newcomer copies, word for word but for fewer questions and another name."""
    folders = [
        ROOT / "ViLBERT" / f"{p}/VQA_easy_vqa_small-readme_test" for p in ("save", "results")
    ]
    block = next(b for b in blocks("ViLBERT/README.md", "bash") if "train_tasks.py" in b)
    block = block.replace("--save_name first", "--save_name readme_test")
    block = block.replace("small-first", "small-readme_test")
    block = block.replace("minival", "nominival")
    block = block.replace("--tiny", FEWER)
    try:
        shown = shown_by(block, ROOT / "ViLBERT")
        assert "nominival of easy_vqa, SpotTune_Block: overall" in shown
        assert "decided   SpotTune_Block, the policy's likelier decision: " in shown
        assert (folders[0] / "result.json").is_file() and (folders[0] / "report.html").is_file()
    finally:
        subprocess.run(["rm", "-rf", *map(str, folders)], check=True)


@pytest.mark.slow  # tests/test_own_data.py does the same in this process
def test_the_block_of_a_data_set_of_ones_own_runs(tmp_path):
    """Word for word but for drawings, another name, and fewer epochs."""
    name, photos = "readme_own_test", write_shapes(tmp_path, 40)
    block = next(b for b in blocks("common/README.md", "bash") if " make flowers " in b)
    for given, instead in {
        "flowers.csv": str(photos / "shapes.csv"),
        "--images photos": f"--images {photos / 'shapes'} --out {tmp_path / 'made'}",
        "--detector frcnn": "--detector pixels --quiet",
        "flowers": name,
        "own/base.yaml": "own/small.yaml",
        "IMG_0001": "'shape 01'",
        "bash 0 ": "bash cpu ",
        "SpotTune_Block": "SpotTune_Block --policy-training published --epochs 1 --no-plots",
    }.items():
        assert given in block
        block = block.replace(given, instead)
    made = ["data", "LXMERT/snap/vqa", "ViLBERT/save", "ViLBERT/results"]
    made += [f"VLBERT/output/vl-bert/own{size}" for size in ("", "_small")]
    try:
        shown = shown_by(block, ROOT)
        assert shown.count(f"valid of {name}, SpotTune_Block: overall") == 3
        assert "decided   SpotTune_Block, the policy's likelier decision: " in shown
    finally:
        subprocess.run(["rm", "-rf", f"data/.{name}.lock"], cwd=ROOT, check=True)
        subprocess.run(
            ["rm", "-rf", *(f"{folder}/{name}" for folder in made)], cwd=ROOT, check=True
        )


@pytest.mark.long
def test_the_first_commands_of_lxmert_run(tmp_path):
    """The block a newcomer copies, word for word but for fewer questions and another name."""
    folder = ROOT / "LXMERT" / "snap" / "vqa" / "readme_test"
    block = next(b for b in blocks("LXMERT/README.md", "bash") if "vqa_finetune" in b)
    block = block.replace(" first ", " readme_test ").replace("vqa/first/", "vqa/readme_test/")
    block = block.replace("minival", "nominival")
    block = block.replace("--questions 1000 --epochs 2", FEWER)
    try:
        shown = shown_by(block, ROOT / "LXMERT")
        assert "nominival of easy_vqa, SpotTune_Block: overall" in shown
        assert "decided   SpotTune_Block, the policy's likelier decision: " in shown
        assert (folder / "result.json").is_file() and (folder / "report.html").is_file()
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.slow  # tests/lxmert/test_adaptive_train.py trains and tests the same way
def test_the_first_commands_of_the_adaptive_lxmert_run(vqa_data):
    """The block a newcomer copies, word for word but for other questions and another name."""
    folder = ROOT / "LXMERT" / "snap" / "adaptive" / "readme_test"
    block = next(b for b in blocks("LXMERT/README.md", "bash") if b.startswith("python3 train.py"))
    block = block.replace(" first", " readme_test")
    few = f"--tiny --size small --dataset vqa --data {vqa_data} --quiet"
    block = block.replace("--tiny", few).replace(
        "--questions 1000", "--questions 128 --overwrite --no-plots"
    )
    try:
        found = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=ROOT / "LXMERT",
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert "Cross Self Vision 0" in found.stdout
        assert f"30 predictions in {Path('snap/adaptive/readme_test')}" in found.stdout
        assert (folder / "test_predict.json").is_file() and (folder / "result.json").is_file()
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.slow  # tests/lxmert/test_adaptive_train.py trains and tests the same way
def test_the_learner_of_the_adaptive_lxmert_runs(vqa_data, tmp_path):
    """The example, word for word but for other questions and another place."""
    example = next(b for b in blocks("LXMERT/README.md", "python") if "Learner" in b)
    few = f"dataset='vqa', data='{vqa_data}', size='small', questions=128, no_plots=True"
    found = subprocess.run(
        [sys.executable, "-c", example.replace("tiny=True", few)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "} 100.0\n" in found.stdout
    assert (tmp_path / "snap" / "adaptive" / "kept" / "BEST.safetensors").is_file()


def test_the_python_example_runs():
    (example,) = blocks("README.md", "python")
    found = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "'lang.1'" in found.stdout


@pytest.mark.parametrize("name", READMES)
def test_links_and_pictures_exist(name):
    folder = (ROOT / name).parent
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (folder / target).exists(), f"{name}: {target}"


def results_made_anew() -> list[str]:
    """Results that differ from those of the commit, as after `make demo` on another machine."""
    found = subprocess.run(
        ["git", "diff", "--name-only", "HEAD", "--", "results"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split()


def test_generated_blocks_are_up_to_date():
    if anew := results_made_anew():
        pytest.skip(f"{anew[0]} was made anew; `python -m common.readme` puts it into the README")
    assert main(["--check"]) == 0


@pytest.mark.parametrize("name", READMES)
def test_no_gap_is_left(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.findall(r"^[A-Z_]{4,}$|\bTODO\b", text, re.MULTILINE)
    for table in re.findall(r"<!-- results: \S+ -->\n(.*?)<!-- end", text, re.DOTALL):
        assert "|" in table, "an empty table"


def test_blocks_are_filled_from_their_files(tmp_path):
    (tmp_path / "a.md").write_text("| 1 |\n")
    text = "x\n<!-- results: a.md -->\nold\n<!-- end of results -->\ny\n"
    filled = fill(text, tmp_path)
    assert filled == "x\n<!-- results: a.md -->\n| 1 |\n<!-- end of results -->\ny\n"
    assert fill(filled, tmp_path) == filled
    with pytest.raises(ValueError, match="b.md is missing"):
        fill(text.replace("a.md", "b.md"), tmp_path)


@pytest.mark.slow
def test_the_quick_demo_runs_and_ends_with_the_table(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "common.demo", "--quick", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    table = found.stdout.split("made in")[-1]
    for row in (
        "Frozen",
        "standard",
        "SpotTune_Block",
        "SpotTune",
        "BlockDrop",
        "majority",
        "LXMERT",
        "VL-BERT",
        "ViLBERT",
    ):
        assert row in table
    assert (tmp_path / "out" / "comparison.html").stat().st_size > 50_000
