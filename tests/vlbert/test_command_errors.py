"""Bad input of vqa/train_end2end.py and vqa/test.py: one error that says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from common.training.checkpoint import load_checkpoint, save_checkpoint
from tests.common.held_folder import refused_while_in_use
from tests.common.odd_folders import refused_in_odd_folders
from tests.vlbert.runs import FOLDER, HOME, flags, refused, write_config
from vlbert.finetuning import main
from vlbert.testing import main as predict


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "TRIAN.LR=1"), "unknown key TRIAN; did you mean TRAIN?"),
        (("--set", "TRAIN.LR"), "--set TRAIN.LR: give KEY=VALUE"),
        (("--set", "TRAIN=1", "--epochs", "2"), "key TRAIN.END_EPOCH: given twice"),
        (("--set", "TRAIN.LR=2", "TRAIN={END_EPOCH: 2}"), "key TRAIN: given twice"),
        (("--set", "LOG_FREQUENT=0"), "key LOG_FREQUENT: 0: must be at least 1"),
        (("--set", "NUM_WORKERS_PER_GPU=-1"), "key NUM_WORKERS_PER_GPU: -1: must be at least 0"),
        (("--set", "TRAIN.CLIP_GRAD_NORM=.nan"), "key TRAIN.CLIP_GRAD_NORM: nan (float)"),
        (
            ("--set", "VAL.BATCH_IMAGES=[4, 4]"),
            "key VAL.BATCH_IMAGES: [4, 4]: a list is for pretrain",
        ),
        (("--set", "NETWORK.VLBERT.hidden_dropout_prob=1.5"), "1.5: must be from 0 to 1"),
        (
            ("--set", "POLICY.TEMPERATURE=0", "--strategy", "SpotTune"),
            "key POLICY.TEMPERATURE: 0.0",
        ),
        (("--set", "NETWORK.BERT_MODEL_NAME="), "key NETWORK.BERT_MODEL_NAME: '': "),
        (("--policy", "published"), "--policy published: strategy standard decides nothing"),
        (("--temperature", "2"), "--temperature 2.0: strategy standard decides nothing"),
        (("--frozen-layers", "1"), "--frozen-layers 1: strategy standard does not read it"),
        (("--strategy", "SpotTune", "--trainable-layers", "last:1"), "the second is for LastK"),
        (("--resume", "--overwrite"), "--resume and --overwrite: give one of them"),
        (("--set", "TRAIN.LR=much"), "key TRAIN.LR: 'much' (str): expected a number"),
        (("--strategy", "SpotTune_Blok"), "Did you mean"),
        (("--strategy", "standard", "--policy-eval", "global"), "decides nothing"),
        (("--strategy", "standard", "--global-k", "1"), "decides nothing"),
        (("--strategy", "SpotTune", "--global-k", "1"), "needs --policy-eval global"),
        (("--strategy", "last_9"), "9 trainable layers wanted, the encoder has 2"),
        (("--strategy", "specific_k", "--frozen-layers", "7"), "needs layers of 0 to 1"),
        (("--frozen-layers", "x"), "--frozen-layers x: give numbers from 1"),
        (("--epochs", "0"), "key TRAIN.END_EPOCH: 0: must be positive"),
        (("--questions", "999"), "--questions 999: there are"),
        (("--set", "TRAIN.BATCH_IMAGES=64"), "an update is made of 64 questions"),
        (
            ("--set", "TRAIN.WARMUP_STEPS=500"),
            "key TRAIN.WARMUP_STEPS: 500: the training set gives",
        ),
        (("--set", "TRAIN.LR_SCHEDULE=plateau"), "plateau: not supported"),
        (("--set", "TRAIN.LR_MULT=[[nothing, 2]]"), "'nothing' is in no name"),
        (("--set", "TRAIN.SHUFFLE=false"), "key TRAIN.SHUFFLE: false"),
        (("--set", "NETWORK.VLBERT.vocab_size=30522"), "vocab.txt has 11 word pieces"),
        (("--set", "NETWORK.PARTIAL_PRETRAIN=nowhere.model"), "nowhere.model"),
        (("--set", "NETWORK.PARTIAL_PRETRAIN="), "NETWORK.VLBERT.from_scratch=true"),
        (
            (
                "--set",
                "POLICY.OUTPUT_SIZE=24",
                "--policy",
                "published",
                "--strategy",
                "SpotTune_Block",
            ),
            "has 2 decisions with two numbers each: 4",
        ),
        (("--set", "DATASET.TRAIN_IMAGE_SET=train2013"), "image set 'train2013': vqa has"),
        (("--set", "DATASET.VAL_IMAGE_SET=test2015"), "has questions without answers"),
        (("--set", "MODULE=ResNetVLBERTForPretraining"), "ForPretraining"),
        (("--dist",), "scripts/dist_run_single.sh"),
        (("--precision", "fp16"), "precision fp16 needs a GPU"),
    ],
)
def test_wrong_flags_and_keys_are_refused(coco, tmp_path, capsys, more, message):
    shown = refused(capsys, flags(write_config(coco), tmp_path, *more))
    assert message in shown
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("vqa/v2_mscoco_train2014_annotations.json", "visualqa.org"),
        ("vqa/answers_vqa.txt", "answers_vqa.txt"),
        ("bert/vocab.txt", "vocab.txt"),
        ("vl-bert-tiny-prec.model", "vl-bert-tiny-prec.model"),
    ],
)
def test_a_missing_file_is_named(coco, tmp_path, capsys, lost, named):
    data = tmp_path / "coco"
    shutil.copytree(coco, data)
    (data / lost).unlink()
    shown = refused(capsys, flags(write_config(data), tmp_path / "out"))
    assert named in shown and str(data) in shown


def test_missing_vqa_files_point_to_the_embedded_data(tmp_path, capsys):
    shown = refused(
        capsys,
        [
            "--cfg",
            str(HOME / "cfgs/vqa/standard.yaml"),
            "--model-dir",
            str(tmp_path),
            "--gpus",
            "cpu",
            "--set",
            f"DATASET.DATASET_PATH={tmp_path}",
        ],
    )
    for name in (
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "answers_vqa.txt",
        "v2_mscoco_val2014_annotations.json",
        "bert-base-uncased/vocab.txt",
        "vl-bert-base-prec.model",
    ):
        assert shown.count(f"{name}  from ") == 1, name
    assert "scripts/nondist_run.sh vqa/train_end2end.py cfgs/easy_vqa/base.yaml" in shown


def test_a_config_that_is_not_there_lists_those_that_are(tmp_path, capsys):
    shown = refused(capsys, ["--cfg", "cfgs/easy_vqa/bse.yaml", "--model-dir", str(tmp_path)])
    assert "spottune_block.yaml" in shown


@pytest.fixture(scope="module")
def trained(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert (
        main(flags(write_config(coco), out, "--strategy", "SpotTune_Block", "--no-tensorboard"))
        == 0
    )
    return out / FOLDER


def test_test_without_a_checkpoint_says_where_it_looked(coco, tmp_path, capsys):
    shown = refused(
        capsys, ["--cfg", str(write_config(coco)), "--model-dir", str(tmp_path)], predict
    )
    assert "BEST.safetensors is missing" in shown and "--ckpt" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--strategy", "BlockDrop"), "strategy is 'SpotTune_Block' in the file"),
        (("--policy", "published"), "policy is 'small' in the file"),
        (("--policy-eval", "global"), "global"),
        (("--split", "train2013"), "image set 'train2013'"),
        (("--bs", "0"), "--bs 0"),
        (("--set", "NETWORK.VLBERT.num_attention_heads=4"), "num_attention_heads is 2 in the file"),
        (("--set", "NETWORK.VLBERT.num_hidden_layers=3"), "num_hidden_layers is 2 in the file"),
        (("--set", "NETWORK.NO_GROUNDING=true"), "no_grounding is False in the file"),
        (("--set", "SCALES=[30, 50]"), "transform.scales is [600, 1000] in the file"),
        (("--set", "SIZE=huge"), "size is 'base' in the file"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(coco, trained, tmp_path, capsys, more, message):
    shown = refused(
        capsys,
        [
            "--cfg",
            str(write_config(coco)),
            "--ckpt",
            str(trained / "BEST"),
            "--gpus",
            "cpu",
            "--quiet",
            "--result-path",
            str(tmp_path),
            *more,
        ],
        predict,
    )
    assert message in shown and not list(tmp_path.glob("*.json"))


def test_other_answers_than_the_checkpoint_s_are_refused(coco, trained, tmp_path, capsys):
    data = tmp_path / "coco"
    shutil.copytree(coco, data)
    text = (data / "vqa" / "answers_vqa.txt").read_text()
    (data / "vqa" / "answers_vqa.txt").write_text(text.replace("red", "blue"))
    shown = refused(
        capsys,
        [
            "--cfg",
            str(write_config(data)),
            "--ckpt",
            str(trained / "BEST"),
            "--gpus",
            "cpu",
            "--quiet",
        ],
        predict,
    )
    assert "answers.sha256" in shown


def test_a_pretraining_model_is_not_tested(coco, tmp_path, capsys):
    shown = refused(
        capsys,
        [
            "--cfg",
            str(write_config(coco)),
            "--gpus",
            "cpu",
            "--quiet",
            "--ckpt",
            str(coco / "vl-bert-tiny-prec.model"),
        ],
        predict,
    )
    assert "--partial-pretrain" in shown


def test_damaged_checkpoints_are_refused(coco, trained, tmp_path, capsys):
    path = tmp_path / "BEST.safetensors"
    path.write_bytes((trained / "BEST.safetensors").read_bytes()[:-100])
    command = ["--cfg", str(write_config(coco)), "--ckpt", str(path), "--gpus", "cpu", "--quiet"]
    assert str(path) in refused(capsys, command, predict)
    state, meta = load_checkpoint(trained / "BEST.safetensors")
    del state["model"]["final_mlp.2.bias"]
    save_checkpoint(path, state, meta)
    assert "final_mlp.2.bias" in refused(capsys, command, predict)


def test_a_released_finetuned_model_is_tested_by_the_plain_config(coco, tmp_path, capsys):
    """A .model file of the original's training, which knows nothing of this code."""
    assert main(flags(write_config(coco), tmp_path, "--no-tensorboard")) == 0
    best = tmp_path / FOLDER / "BEST.safetensors"
    weights = {f"module.{name}": x for name, x in load_checkpoint(best)[0]["model"].items()}
    torch.save({"state_dict": weights, "optimizer": {}}, tmp_path / "vqa-0004.model")
    found = []
    for path in (best, tmp_path / "vqa-0004.model"):
        assert (
            predict(
                [
                    "--cfg",
                    str(write_config(coco)),
                    "--ckpt",
                    str(path),
                    "--gpus",
                    "cpu",
                    "--split",
                    "val2014",
                    "--quiet",
                    "--result-path",
                    str(tmp_path),
                ]
            )
            == 0
        )
        found.append((tmp_path / "tiny_vqa2_val2014.json").read_bytes())
    assert found[0] == found[1]


def test_a_folder_that_another_run_uses_is_left_alone(coco, trained, tmp_path, capsys):
    """Training, resuming, testing; pretraining is in test_pretrain_command."""
    out = tmp_path / "out"
    shutil.copytree(trained, out / FOLDER)
    words = flags(write_config(coco), out, "--no-tensorboard")
    tested = [w for w in words if w not in ("--no-plots", "--no-tensorboard")]
    refused_while_in_use(
        capsys,
        {
            "train": (main, [*words, "--overwrite"]),
            "resume": (main, [*words, "--resume"]),
            "test": (predict, tested),
        },
        out / FOLDER,
    )


def test_a_folder_that_cannot_be_written_to_is_one_line(coco, tmp_path, capsys):
    def run(place: Path):
        return main, flags(write_config(coco), place, "--no-tensorboard"), place / FOLDER

    refused_in_odd_folders(capsys, run, tmp_path, log="vocab.txt")
