"""What the VQA command refuses: one line, exit status 2, the value and the way out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lxrt.finetuning import main
from lxrt.pretraining import main as pretrain
from tests.common.held_folder import refused_while_in_use
from tests.common.odd_folders import refused_in_odd_folders
from tests.lxmert.runs import refused


def test_a_pretraining_snapshot_is_not_taken_for_a_finetuned_model(
    flags, pretrained, tmp_path, capsys
):
    snapshot = f"{pretrained}_LXRT.safetensors"
    shown = refused(
        capsys, *flags, "--test", "minival", "--load", snapshot, "--output", str(tmp_path)
    )
    assert shown == (
        f"error: {snapshot} is not a finetuned VQA model (its task is 'pretraining'); "
        "a pretraining snapshot is loaded with --loadLXMERTQA\n"
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            ["--strategy", "SpotTune"],
            "strategy is 'SpotTune_Block' in the file, this run has 'SpotTune'",
        ),
        (["--policy", "published"], "policy is 'small' in the file, this run has 'published'"),
        (["--size", "base"], "size is 'small' in the file, this run has 'base'"),
    ],
)
def test_testing_a_checkpoint_of_another_strategy_policy_or_size_is_one_error(
    stopped, vqa_data, tmp_path, capsys, change, difference
):
    out, _ = stopped
    shown = refused(
        capsys,
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--gpus",
        "cpu",
        "--test",
        "minival",
        "--load",
        str(out / "BEST"),
        "--output",
        str(tmp_path),
        *change,
    )
    assert f"{out / 'BEST.safetensors'}: made with other settings: " in shown
    assert difference in shown
    assert not (tmp_path / "minival_predict.json").exists()


def other_data(vqa_data: Path, folder: Path, answers: Sequence[str]) -> Path:
    """The same data with another list of answers."""
    shutil.copytree(vqa_data, folder, symlinks=True)
    rows = {"label2ans": list(answers), "ans2label": {a: n for n, a in enumerate(answers)}}
    for name, content in rows.items():
        (folder / "vqa" / f"trainval_{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda answers: answers[:-1], "answers.count is 13 in the file, this run has 12"),
        (lambda answers: answers[::-1], "answers.sha256 is "),
    ],
)
def test_a_checkpoint_for_other_answers_is_one_error(
    stopped, vqa_data, answers, tmp_path, capsys, change, difference
):
    """Also where there are as many: every prediction would be a wrong answer."""
    out, _ = stopped
    data = other_data(vqa_data, tmp_path / "data", change(answers))
    shown = refused(
        capsys,
        "--dataset",
        "vqa",
        "--data",
        str(data),
        "--gpus",
        "cpu",
        "--test",
        "minival",
        "--load",
        str(out / "BEST"),
        "--output",
        str(tmp_path),
    )
    assert f"{out / 'BEST.safetensors'}: made with other settings: " in shown
    assert difference in shown


def test_a_checkpoint_with_another_vocabulary_is_one_error(stopped, vqa_data, tmp_path, capsys):
    """The words' numbers would mean other words."""
    out, _ = stopped
    shutil.copy(out / "BEST.safetensors", tmp_path)
    words = (out / "vocab.txt").read_text().split("\n")
    words[80], words[90] = words[90], words[80]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    shown = refused(
        capsys,
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--gpus",
        "cpu",
        "--test",
        "minival",
        "--load",
        str(tmp_path / "BEST"),
        "--output",
        str(tmp_path),
    )
    assert "vocabulary.sha256 is " in shown


def test_a_global_policy_that_was_never_computed_is_an_error(stopped, vqa_data, tmp_path, capsys):
    out, _ = stopped
    shown = refused(
        capsys,
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--gpus",
        "cpu",
        "--test",
        "minival",
        "--policy-eval",
        "global",
        "--load",
        str(out / "BEST"),
        "--output",
        str(tmp_path),
        "--quiet",
    )
    assert "policy evaluation 'global' needs global decisions: none were computed" in shown


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            ["--strategy", "SpotTun"],
            [
                "unknown strategy 'SpotTun'. Did you mean SpotTune?",
                "Valid: standard, Frozen, LastK",
                "frozen_bert",
            ],
        ),
        (
            ["--policy", "big", "--strategy", "SpotTune"],
            ["unknown policy 'big'; valid: small, published, shared, random:<share>"],
        ),
        (
            ["--valid", "minivall"],
            ["split minivall of vqa: it has train, nominival, minival, test"],
        ),
        (["--train", "train,trian"], ["split trian of vqa"]),
        (
            ["--dataset", "vqa2"],
            ["unknown data set 'vqa2'; there are: vqa, vqa_official, vqa_cp, "],
        ),
        (
            ["--questions", "9999"],
            ["--questions 9999: there are", "training questions in train,nominival of vqa"],
        ),
        (["--questions", "0"], ["--questions 0: there are"]),
        (["--holdout", "1.5"], ["--holdout 1.5: give a number between 0 and 1"]),
        (["--optim", "adamm"], ["unknown optimiser 'adamm'; valid: bert, adamw"]),
        (
            ["--strategy", "LastK"],
            ["LastK needs to know how many layers: --trainable-layers last:4"],
        ),
        (
            ["--strategy", "FrozenLayers", "--frozen-layers", "7"],
            ["unknown layers 7; valid: 1..6 or lang.1, lang.2, vision.1"],
        ),
        (
            ["--strategy", "standard", "--frozen-layers", "1"],
            ["frozen layers ('1') belong to FrozenLayers, not standard"],
        ),
        (["--test", "minival"], ["--test needs the finetuned model: give BEST"]),
        (
            ["--test", "mini", "--load", "x"],
            ["--test 'mini': use a split with `test` or `val` in its name"],
        ),
        (
            ["--gpus", "zero"],
            ["GPUs 'zero': give different numbers separated by commas, such as 0 or 0,1, or cpu"],
        ),
        (["--seed", "-1"], ["seed -1: give a whole number from 0 to 4294967295"]),
        (
            ["--loadLXMERTQA", "nowhere/model"],
            ["no checkpoint 'nowhere/model'", "nowhere/model_LXRT.pth", "--fromScratch"],
        ),
        (["--batchSize", "0"], ["--batch-size 0: give a number of at least 1"]),
        (["--epochs", "0"], ["--epochs 0: give a number of at least 1"]),
        (["--eval-batch-size", "-1"], ["--eval-batch-size -1: give a number of at least 1"]),
        (["--clip", "-3"], ["--clip -3.0: give a number of at least 0"]),
        (["--lr", "-1"], ["--lr -1.0: give a number of at least 0"]),
        (["--numWorkers", "-2"], ["--workers -2: give a number of at least 0"]),
        (["--max-steps", "-1"], ["--max-steps -1: give a number of at least 0"]),
        (["--save-every", "-1"], ["--save-every -1: give a number of at least 0"]),
        (["--dropout", "1.5"], ["--dropout 1.5: give a number from 0 to 1"]),
        (["--temperature", "0"], ["--temperature 0.0: give a number above 0"]),
        (["--temperature-end", "-1"], ["--temperature-end -1.0: give a number above 0"]),
        (["--policy-init", "1"], ["--policy-init 1.0: give a number between 0 and 1"]),
        (["--policy-hold", "2"], ["--policy-hold 2.0: give a number from 0 to 1"]),
        (["--policy-start", "-1"], ["--policy-start -1: give a number of at least 0"]),
        (["--policy-clip", "-1"], ["--policy-clip -1.0: give a number of at least 0"]),
        (["--constrain-k", "-2"], ["--constrain-k -2.0: give a number of at least 0"]),
        (["--target-rate", "7"], ["--target-rate 7.0: give a number from 0 to 1"]),
        (["--temperature", "nan"], ["--temperature nan: give a number above 0"]),
        (
            ["--constrain-k", "2", "--strategy", "standard"],
            ["--constrain-k 2.0: strategy standard decides nothing"],
        ),
        (["--valid", "test"], ["split test of vqa has questions without answers"]),
        (
            ["--global-k", "2", "--strategy", "BlockDrop"],
            ["--global-k 2 needs --policy-eval global"],
        ),
        (
            ["--policy-eval", "global", "--global-k", "7", "--strategy", "BlockDrop"],
            ["--global-k 7: the model has 6 live decisions"],
        ),
        (
            ["--sampled-share", "0", "--executor", "sampled", "--strategy", "BlockDrop"],
            ["--sampled-share 0.0: give a number above 0 and at most 1"],
        ),
        (
            ["--llayers", "0", "--xlayers", "0", "--rlayers", "0"],
            ["'l_layers': 0, 'x_layers': 0, 'r_layers': 0", "not all of them 0"],
        ),
        (["--rlayers", "-1"], ["'r_layers': -1}: none may be negative"]),
        (
            ["--load", "nowhere/BEST"],
            ["no checkpoint 'nowhere/BEST'", "nowhere/BEST.safetensors", "nowhere/BEST.pth"],
        ),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_error_with_the_way_out(
    flags, tmp_path, capsys, given, parts
):
    shown = refused(capsys, *flags, "--output", str(tmp_path / "run"), *given)
    for part in parts:
        assert part in shown


def test_the_base_size_never_starts_from_weights_that_are_missing(
    vqa_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shown = refused(
        capsys,
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--gpus",
        "cpu",
        "--size",
        "base",
        "--llayers",
        "1",
        "--xlayers",
        "1",
        "--rlayers",
        "0",
        "--loadLXMERTQA",
        "default",
        "--output",
        str(tmp_path / "run"),
    )
    assert "no checkpoint 'snap/pretrained/model'" in shown
    assert "model_LXRT.pth of the original authors" in shown and "--fromScratch" in shown


def test_missing_data_is_one_error_that_lists_the_files_and_the_way_without(
    vqa_data, tmp_path, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    flags = ["--gpus", "cpu", "--output", str(tmp_path / "run"), "--dataset", "vqa", "--data"]
    shown = refused(capsys, *flags, str(empty))
    for name in (
        "vqa/train.json",
        "vqa/nominival.json",
        "vqa/minival.json",
        "vqa/trainval_label2ans.json",
        "mscoco_imgfeat/val2014_obj36.tsv",
    ):
        assert f"{empty / name}  from https://" in shown
    assert "--dataset easy_vqa" in shown
    part = tmp_path / "part"
    shutil.copytree(vqa_data, part, symlinks=True)
    (part / "vqa" / "nominival.json").unlink()
    shown = refused(capsys, *flags, str(part))
    assert "1 files are missing" in shown and str(part / "vqa" / "nominival.json") in shown


def test_truncated_questions_name_the_file_and_the_place(flags, vqa_data, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(vqa_data, data, symlinks=True)
    file = data / "vqa" / "minival.json"
    file.write_text(file.read_text()[:500])
    shown = refused(capsys, *flags, "--data", str(data), "--output", str(tmp_path / "run"))
    assert f"{file}: line 1, column " in shown and "truncated or damaged" in shown


def test_a_pickle_with_code_inside_is_refused_by_the_command(flags, tmp_path, capsys):
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"logit_fc.0.weight": Bomb()}, tmp_path / "BEST.pth")
    shown = refused(
        capsys, *flags, "--load", str(tmp_path / "BEST"), "--output", str(tmp_path / "run")
    )
    assert f"{tmp_path / 'BEST.pth'}: refused" in shown and "nothing was executed" in shown
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_another_run_uses_is_left_alone(
    tmp_path, capsys, flags, stopped, pretraining_files
):
    """Training, resuming, several seeds, testing, pretraining."""
    out, run = stopped
    folder = tmp_path / "run"
    shutil.copytree(out, folder)
    here = ["--output", str(folder)]
    refused_while_in_use(
        capsys,
        {
            "train": (main, [*flags, *here, "--overwrite"]),
            "resume": (main, [*run, *here, "--resume"]),
            "seeds": (main, [*flags, *here, "--seeds", "2", "--overwrite"]),
            "test": (main, [*run, *here, "--load", str(folder / "BEST"), "--test", "minival"]),
            "pretrain": (pretrain, pretraining_files.flags(folder, "--overwrite")),
        },
        folder,
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--deterministic-scale", "3"], "--deterministic-scale 3.0: strategy standard decides"),
        (["--temperature", "2"], "--temperature 2.0: strategy standard decides nothing"),
        (["--policy-training", "started"], "--policy-training started: strategy standard decides"),
        (
            ["--strategy", "BlockDrop", "--target-rate", "0.5", "--policy-hold", "1"],
            "--policy-hold 1.0: the policy learns nothing, so that --target-rate 0.5 would have no",
        ),
        (["--executor", "dense"], "--executor dense: strategy standard decides nothing"),
        (["--policy-precision", "low"], "--policy-precision low: strategy standard decides"),
        (["--policy-lr", "1e-3"], "--policy-lr 0.001: strategy standard decides nothing"),
        (["--target-rate-scale", "2"], "--target-rate-scale 2.0: strategy standard decides"),
        (
            ["--strategy", "SpotTune", "--sampled-share", "0.5"],
            "--sampled-share 0.5 needs --executor sampled",
        ),
        (
            ["--strategy", "SpotTune", "--constrain-k-scale", "2"],
            "--constrain-k-scale 2.0 needs --constrain-k …",
        ),
        (
            ["--strategy", "BlockDrop", "--constrain-k", "1000"],
            "a budget of K = 1000 decisions: the model has 6 live ones",
        ),
        (["--lr", "inf"], "--lr inf: give a number of at least 0"),
    ],
)
def test_an_option_without_effect_is_refused(flags, tmp_path, capsys, given, reason):
    shown = refused(capsys, *flags, *given, "--output", str(tmp_path / "run"))
    assert reason in shown
    assert not (tmp_path / "run" / "LAST.safetensors").exists()


def test_a_folder_that_cannot_be_written_to_is_one_line(flags, tmp_path, capsys):
    def run(place: Path):
        folder = place / "snap" / "run"
        return main, [*flags, "--epochs", "1", "--output", str(folder)], folder

    refused_in_odd_folders(capsys, run, tmp_path)
