"""The pretraining command on small data in the original files, and what comes after it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.files import repository_root
from common.training.checkpoint import load_checkpoint, load_meta
from lxrt.finetuning import main as finetune
from lxrt.pretraining import main
from lxrt.pretraining_options import pretrain_parser, pretraining_options
from tests.common.own_detector import check_commands
from tests.lxmert.pretraining_files import (
    ANSWERS,
    LAYERS,
    MINIVAL,
    TRAIN,
    VAL,
    PretrainingFiles,
    refused_pretraining,
)
from tests.lxmert.runs import strict_json

LOSSES = ["Mask_LM", "Matched", "Obj", "Attr", "Feat", "QA"]
SNAPSHOTS = ["BEST_EVAL_LOSS_LXRT", "Epoch01_LXRT", "Epoch02_LXRT", "LAST"]
SCRIPT = repository_root() / "LXMERT" / "src" / "pretrain" / "lxmert_pretrain.py"


@pytest.fixture
def files(pretraining_files: PretrainingFiles) -> PretrainingFiles:
    return pretraining_files


@pytest.fixture
def whole(whole_pretraining: Path) -> Path:
    return whole_pretraining


def test_a_run_leaves_upstream_s_snapshots_log_lines_and_a_result(whole):
    assert sorted(path.stem for path in whole.glob("*.safetensors")) == SNAPSHOTS
    log = (whole / "log.log").read_text()
    assert "lxmert: 156 sentences for training, 24 for validation; 7 answers" in log
    for epoch in (0, 1):
        for part in ("train", "valid"):
            line = re.search(rf"^Epoch {epoch}: {part} loss ([\d.]+)  (.*)$", log, re.MULTILINE)
            found = dict(pair.split(": ") for pair in re.findall(r"\w+: [\d.]+", line.group(2)))
            assert list(found) == LOSSES
            assert sum(map(float, found.values())) == pytest.approx(float(line.group(1)), abs=1e-3)
        assert re.search(
            rf"^Epoch {epoch}: QA accuracy train [\d.]+, valid overall [\d.]+, "
            r"gqa [\d.]+, visual7w [\d.]+, vqa [\d.]+$",
            log,
            re.MULTILINE,
        )
    result = strict_json(whole / "result.json")
    assert (result["task"], result["dataset"], result["size"]) == ("pretraining", "lxmert", "small")
    assert result["selection"] == "sum of the losses on mscoco_minival"
    assert list(result["losses"]["val"]) == LOSSES and len(result["epochs"]) == 2
    assert "--fromScratch" in result["command"] and result["versions"]["torch"]
    best = result["epochs"][result["best_epoch"]]
    assert -best["heldout_score"] == pytest.approx(
        min(sum(e["heldout_losses"].values()) for e in result["epochs"])
    )
    assert best["heldout_losses"] == result["losses"]["val"]


def test_the_best_snapshot_is_the_one_of_the_lowest_validation_loss(whole):
    best = strict_json(whole / "result.json")["best_epoch"]
    snapshot = load_checkpoint(whole / "BEST_EVAL_LOSS_LXRT.safetensors")[0]["model"]
    for epoch in (0, 1):
        other = load_checkpoint(whole / f"Epoch{epoch + 1:02d}_LXRT.safetensors")[0]["model"]
        same = all(torch.equal(x, other[name]) for name, x in snapshot.items())
        assert same == (epoch == best)


def test_losses_fall_and_the_labels_of_captions_stay_out_of_the_accuracy(files, tmp_path):
    assert main(files.flags(tmp_path, "--epochs", "6", "--lr", "1e-2")) == 0
    epochs = strict_json(tmp_path / "result.json")["epochs"]
    for name in LOSSES:
        if name != "Matched":
            assert epochs[-1]["train_losses"][name] < epochs[0]["train_losses"][name], name
    assert set(epochs[0]["heldout_qa_accuracy"]) == {"overall", "gqa", "visual7w", "vqa"}


def test_a_snapshot_is_finetuned_with_its_encoder_and_the_answers_it_knows(files, tmp_path, capsys):
    """--loadLXMERTQA of a snapshot of ours: vocabulary, features and answers come from it."""
    data = tmp_path / "data"
    (data / "vqa").mkdir(parents=True)
    (data / "mscoco_imgfeat").symlink_to(files.data / "mscoco_imgfeat")
    known = ["yes", "A man.", "unheard", "two", "zebra"]
    for split, images in (("train", TRAIN), ("nominival", VAL[4:]), ("minival", MINIVAL)):
        rows = [
            {
                "answer_type": "other",
                "img_id": image,
                "label": {"yes": 1.0},
                "sent": "who?",
                "question_id": 10 * place + len(split),
                "question_type": "who",
            }
            for place, image in enumerate(images)
        ]
        (data / "vqa" / f"{split}.json").write_text(json.dumps(rows))
    (data / "vqa" / "trainval_label2ans.json").write_text(json.dumps(known))
    (data / "vqa" / "trainval_ans2label.json").write_text(
        json.dumps({answer: label for label, answer in enumerate(known)})
    )
    run = [
        "--dataset",
        "vqa",
        "--data",
        str(data),
        "--size",
        "small",
        "--gpus",
        "cpu",
        "--batchSize",
        "8",
        "--epochs",
        "1",
        "--quiet",
        "--no-plots",
        "--no-tensorboard",
        "--llayers",
        "1",
        "--xlayers",
        "1",
        "--rlayers",
        "1",
        "--lr",
        "0",
    ]
    assert main(files.flags(tmp_path / "p", "--epochs", "1", "--hiddenSize", "128")) == 0
    snapshot = tmp_path / "p" / "BEST_EVAL_LOSS"
    capsys.readouterr()
    assert finetune([*run, "--loadLXMERTQA", str(snapshot), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "answer head with 3 answers from pretraining, 2 set to zero" in shown
    assert str(tmp_path / "p" / "vocab.txt") in shown
    theirs = load_checkpoint(f"{snapshot}_LXRT.safetensors")[0]["model"]
    ours = load_checkpoint(tmp_path / "out" / "BEST.safetensors")[0]["model"]
    for name, weight in ours.items():
        if name.startswith("lxrt_encoder.model."):
            assert torch.equal(weight, theirs[name.removeprefix("lxrt_encoder.model.")]), name
    rows = [[answer for answer, _ in ANSWERS].index(a) for a in ("yes", "man", "2")]
    head = theirs["answer_head.logit_fc.3.weight"]
    assert torch.equal(ours["logit_fc.3.weight"][[0, 1, 3]], head[rows])
    assert not ours["logit_fc.3.weight"][[2, 4]].any()


def test_pretraining_without_questions_saves_no_answer_head(files, tmp_path, capsys):
    run = ["--taskMaskLM", "--taskObjPredict", "--visualLosses", "feat", "--epochs", "1"]
    assert main(files.flags(tmp_path, *run)) == 0
    path = tmp_path / "BEST_EVAL_LOSS_LXRT.safetensors"
    assert "answers" not in load_meta(path)
    assert not any("answer" in name for name in load_checkpoint(path)[0]["model"])
    log = (tmp_path / "log.log").read_text()
    assert "Mask_LM" in log and "Feat" in log and "QA" not in log and "Matched" not in log
    capsys.readouterr()
    assert (
        main(
            files.flags(
                tmp_path / "second",
                "--loadLXMERT",
                str(tmp_path / "BEST_EVAL_LOSS"),
                "--epochs",
                "1",
                "--max-steps",
                "1",
            )
        )
        == 0
    )
    assert (
        "of the model not in the file, 0 of the file not in the model; answer head: 0 tensors "
        "of the file left out, starts at random values" in capsys.readouterr().out
    )
    shown = refused_pretraining(
        capsys, files.flags(tmp_path / "third", "--load", str(tmp_path / "BEST_EVAL_LOSS"))
    )
    assert "missing" in shown and "--loadLXMERT takes what fits" in shown


def test_load_continues_with_every_tensor_of_a_snapshot(files, whole, tmp_path, capsys):
    run = files.flags(tmp_path / "a", "--load", str(whole / "Epoch02"), "--lr", "0")
    assert main([*run, "--max-steps", "1"]) == 0
    theirs = load_checkpoint(whole / "Epoch02_LXRT.safetensors")[0]["model"]
    ours = load_checkpoint(tmp_path / "a" / "LAST.safetensors")[0]["model"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert f"Epoch02_LXRT.safetensors: all {len(theirs)} tensors loaded" in capsys.readouterr().out
    again = files.flags(tmp_path / "b", "--load", str(whole / "Epoch02"), "--qaSets", "vqa")
    shown = refused_pretraining(capsys, again)
    assert "answer head is for 7 answers that are not the 5 of this run" in shown


def test_weights_of_another_detector_are_refused_or_taken(files, whole, tmp_path, capsys):
    for flag, name in (("--load", "Epoch02_LXRT"), ("--loadLXMERT", "Epoch01_LXRT")):
        start = tmp_path / f"{name}.safetensors"
        shutil.copy(whole / start.name, start)
        shutil.copy(whole / "vocab.txt", tmp_path)
        words = files.flags(tmp_path / flag, flag, str(start).removesuffix("_LXRT.safetensors"))
        check_commands(main, [*words, "--max-steps", "1", "--overwrite"], start, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load", "x", "--loadLXMERT", "y"], "--load and --loadLXMERT both name weights"),
        (["--loadLXMERT", "nowhere/model"], "nowhere/model_LXRT.pth"),
        (
            ["--visualLosses", "obj,colour"],
            "--visualLosses 'obj,colour': give some of obj, attr, feat",
        ),
        (["--qaSets", "okvqa"], "--qaSets 'okvqa'"),
        (["--wordMaskRate", "1.5"], "--word-mask-rate 1.5: give a number from 0 to 1"),
        (["--keep-epochs", "0"], "--keep-epochs 0: give a number of at least 1"),
        (["--train", "train"], "split train of lxmert"),
        (["--batchSize", "0"], "--batch-size 0"),
        (["--optim", "adamwho"], "unknown optimiser 'adamwho'"),
    ],
)
def test_wrong_flags_are_one_line_with_the_value_and_the_way_out(
    files, tmp_path, capsys, flags, message
):
    assert message in refused_pretraining(capsys, files.flags(tmp_path / "out", *flags))


def test_the_released_recipe_is_the_default_of_the_original_data(files, tmp_path, capsys):
    """Size base, BERT's vocabulary: without weights to start from, and without --fromScratch."""
    data = [
        "--dataset",
        "lxmert",
        "--data",
        str(files.data),
        "--gpus",
        "cpu",
        "--quiet",
        "--llayers",
        "1",
        "--xlayers",
        "1",
        "--rlayers",
        "1",
        "--output",
        str(tmp_path),
    ]
    shown = refused_pretraining(capsys, data)
    assert "no weights to start from" in shown and "--fromScratch for random weights" in shown
    options = pretraining_options(pretrain_parser().parse_args([*data, "--fromScratch"]), "")
    recipe = options.recipe("base")
    assert (
        recipe.batch_size,
        recipe.lr,
        recipe.epochs,
        recipe.optim,
        recipe.warmup,
        recipe.clip,
        recipe.eval_batch_size,
    ) == (256, 1e-4, 20, "bert", 0.05, 1.0, 512)


def test_the_embedded_data_are_the_default_and_the_best_snapshot_is_exported(
    easy_vqa_root, tmp_path, monkeypatch, capsys
):
    """As `make pretrain-easy-vqa` does, on fewer images."""
    for module in ("common.data.datasets", "lxrt.pretraining_data"):
        monkeypatch.setattr(f"{module}.repository_root", lambda: easy_vqa_root)
    assert (
        main(
            [
                "--gpus",
                "cpu",
                "--epochs",
                "1",
                "--batchSize",
                "128",
                *LAYERS,
                "--quiet",
                "--no-tensorboard",
                "--output",
                str(tmp_path / "run"),
                "--export",
                str(tmp_path / "export"),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "No --dataset given and none of LXMERT's pretraining data" in shown
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "model_LXRT.safetensors",
        "vocab.txt",
    ]
    meta = load_meta(tmp_path / "export" / "model_LXRT.safetensors")
    assert meta["dataset"] == "easy_vqa" and len(meta["answers"]) == 13
    assert 1 < meta["config"]["attr_id_num"] < meta["config"]["obj_id_num"] < 100
    result = strict_json(tmp_path / "run" / "result.json")
    assert set(result["accuracy"]["val"]) == {"overall", "easy_vqa", "count"}
    assert result["selection"] == "sum of the losses on 5 % of the training images"


@pytest.mark.slow
def test_the_run_script_starts_from_random_weights_unless_a_bert_is_given(files, tmp_path):
    folder = repository_root() / "LXMERT" / "snap" / "pretrain" / "lxmert"
    before = folder.exists()
    flags = files.flags(tmp_path, "--max-steps", "1", "--overwrite")
    for name in ("--gpus", "--bert"):
        del flags[flags.index(name) : flags.index(name) + 2]
    flags.remove("--fromScratch")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "run/lxmert_pretrain.bash", "cpu", *flags, *more],
            cwd=repository_root() / "LXMERT",
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        )

    try:
        done, given = run(), run(f"--bert={files.bert}")
    finally:
        if not before:
            shutil.rmtree(folder)
    assert done.returncode == 0 and "all weights start at random values" in done.stdout, done.stderr
    assert given.returncode == 2 and f"no BERT weights in {files.bert}" in given.stderr
