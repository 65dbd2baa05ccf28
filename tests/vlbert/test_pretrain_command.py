"""The pretraining command on small data in the original files, and what comes after it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.training.checkpoint import load_checkpoint, load_meta
from tests.common.held_folder import refused_while_in_use
from tests.common.own_detector import check_commands
from tests.lxmert.runs import strict_json
from tests.vlbert.pretraining_files import PretrainingFiles, out, refused_pretraining, write_all
from vlbert.finetuning import main as finetune
from vlbert.loading import load_strictly, read_model
from vlbert.pretraining import main
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.sizes import HOME, PretrainingConfig

LOSSES = ["mlm_loss_wvc", "mlm_loss_aux", "mvrc_loss"]
EASY = HOME / "cfgs" / "pretrain" / "easy_vqa_small.yaml"
SMALL = [
    "--set",
    "NETWORK.VLBERT.num_hidden_layers=1",
    "TRAIN.BATCH_IMAGES=64",
    "TRAIN.WARMUP_STEPS=2",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PretrainingFiles:
    return write_all(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def whole(files: PretrainingFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main(files.flags(folder, "--export", str(folder / "export"))) == 0
    return folder


def test_a_run_leaves_the_original_s_files_log_lines_and_a_result(whole):
    names = {path.name for path in out(whole).iterdir()}
    log = next(out(whole).glob("tiny_*.log"))
    assert re.fullmatch(r"tiny_\d{4}-\d\d-\d\d-\d\d-\d\d\.log", log.name)
    assert names == {
        "BEST.safetensors",
        "LAST.safetensors",
        "tiny-0000.safetensors",
        "tiny-0001.safetensors",
        "result.json",
        "tiny.yaml",
        "vocab.txt",
        log.name,
    }
    text = log.read_text()
    assert "16 captions for training, 8 for validation" in text and "6 sentences of text" in text
    assert "4 captions per update, learning rate 0.008, 8 updates" in text  # 1e-3 x (4 + 4)
    for epoch in (0, 1):
        assert re.search(
            rf"^Epoch\[{epoch}\] \tTrain-MLMAccWVC=[\d.]+,\tMLMLossWVC=[\d.]+,"
            r"\tMLMLossAUX=[\d.]+,\tMVRCLoss=[\d.]+,$",
            text,
            re.MULTILINE,
        )
        assert re.search(
            rf"^Epoch\[{epoch}\] \tVal-MLMAccWVC=[\d.]+,\tVal-MLMAccAUX=[\d.]+,"
            r"\tVal-MVRCAccuracy=[\d.]+,",
            text,
            re.MULTILINE,
        )
    assert text.count("New Best Val MLMAccWVC") >= 1
    result = strict_json(out(whole) / "result.json")
    assert (result["task"], result["dataset"], result["size"], result["backbone"]) == (
        "pretraining",
        "conceptual_captions",
        "small",
        "vlbert",
    )
    assert result["selection"] == "MLMAccWVC on val"
    assert list(result["losses"]["val"]) == LOSSES and len(result["epochs"]) == 2
    assert result["recipe"]["texts per update"] == 4
    scores = [epoch["heldout_score"] for epoch in result["epochs"]]
    assert result["best_epoch"] == scores.index(max(scores))
    assert result["accuracy"]["val"]["MLMAccWVC"] == max(scores)


def test_the_export_has_the_names_of_the_released_models_in_half_precision(whole):
    path = whole / "export" / "model.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors", "vocab.txt"]
    state, meta = load_checkpoint(path)
    assert {x.dtype for x in state["model"].values()} == {torch.float16}
    assert not any(name.startswith("module.") for name in state["model"])
    network = ResNetVLBERTForPretraining(PretrainingConfig.from_dict(meta["config"]))
    load_strictly(network, path)
    best = read_model(out(whole) / "BEST.safetensors")
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(weight, best[name], rtol=1e-3, atol=1e-6)


def test_a_pretrained_model_goes_on_and_starts_from_it_with_the_prefix_changes(
    files, whole, tmp_path, capsys
):
    start = ["--partial-pretrain", str(whole / "export" / "model.safetensors"), "--max-steps", "1"]
    assert (
        main(files.flags(tmp_path, *start, TRAIN__LR=0.0, NETWORK__VLBERT__from_scratch=False)) == 0
    )
    assert "random weights" not in capsys.readouterr().out
    ours = read_model(out(tmp_path) / "LAST.safetensors")
    theirs = read_model(whole / "export" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_weights_of_another_detector_are_refused_or_taken(files, whole, tmp_path, capsys):
    start = tmp_path / "start.safetensors"
    shutil.copy(whole / "export" / "model.safetensors", start)
    more = ["--partial-pretrain", str(start), "--max-steps", "1", "--overwrite"]
    check_commands(main, files.flags(tmp_path / "out", *more), start, capsys)


def test_losses_fall_and_relationship_and_averages_by_sample_train(files, tmp_path):
    changes = {
        "TRAIN__END_EPOCH": 12,
        "NETWORK__WITH_REL_LOSS": True,
        "NETWORK__VLBERT__with_pooler": True,
        "NETWORK__MLM_LOSS_NORM_IN_BATCH_FIRST": True,
        "NETWORK__MVRC_LOSS_NORM_IN_BATCH_FIRST": True,
    }
    assert main(files.flags(tmp_path, **changes)) == 0
    result = strict_json(out(tmp_path) / "result.json")
    epochs = result["epochs"]
    for name in LOSSES[:2]:
        assert epochs[-1]["train_losses"][name] < epochs[0]["train_losses"][name] - 0.5, name
    assert "relationship_loss" in epochs[0]["train_losses"]
    assert set(result["accuracy"]["val"]) == {
        "MLMAccWVC",
        "MLMAccAUX",
        "MVRCAccuracy",
        "RelAcc",
        "count",
    }


def test_pretraining_from_images_trains_the_cnn(files, tmp_path):
    changes = {
        "NETWORK__IMAGE_FEAT_PRECOMPUTED": False,
        "NETWORK__IMAGE_NUM_LAYERS": 18,
        "NETWORK__IMAGE_FROZEN_BACKBONE_STAGES": [],
        "NETWORK__IMAGE_FROZEN_BN": False,
        "TRAIN__BATCH_IMAGES": 2,
        "TRAIN__WARMUP_STEPS": 0,
    }
    assert main(files.flags(tmp_path, "--max-steps", "2", texts=False, **changes)) == 0
    names = read_model(out(tmp_path) / "LAST.safetensors").keys()
    assert any("image_feature_extractor.backbone.layer3" in name for name in names)
    assert not any("object_mask_visual_embedding" in name for name in names)  # pixels are masked


def test_the_embedded_data_and_what_finetunes_from_them(
    easy_vqa_root, tmp_path, monkeypatch, capsys
):
    """As the header of the config has it, on fewer images and with one layer."""
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    folder = tmp_path / "pretrained"
    run = [
        "--cfg",
        str(EASY),
        "--model-dir",
        str(tmp_path),
        "--gpus",
        "cpu",
        "--quiet",
        "--no-tensorboard",
        "--epochs",
        "1",
    ]
    assert main([*run, *SMALL, "--export", str(folder)]) == 0
    meta = load_meta(folder / "model.safetensors")
    assert meta["dataset"] == "easy_vqa_captions" and meta["vocabulary"]["count"] == 136
    result = strict_json(next(tmp_path.glob("output/**/result.json")))
    assert set(result["accuracy"]["val"]) == {
        "MLMAccWVC",
        "MVRCAccuracy",
        "MLMAcc colour",
        "MLMAcc shape",
        "MLMAcc yes/no",
        "count",
    }
    capsys.readouterr()
    config = HOME / "cfgs" / "easy_vqa" / "base.yaml"
    assert (
        finetune(
            [
                "--cfg",
                str(config),
                "--model-dir",
                str(tmp_path),
                "--gpus",
                "cpu",
                "--quiet",
                "--no-tensorboard",
                "--no-plots",
                "--epochs",
                "1",
                "--max-steps",
                "1",
                "--set",
                f"NETWORK.PARTIAL_PRETRAIN={folder / 'model.safetensors'}",
                f"NETWORK.BERT_MODEL_NAME={folder}",
                "NETWORK.VLBERT.num_hidden_layers=1",
                "NETWORK.VLBERT.FROZEN_LAYERS=[0]",
                "TRAIN.WARMUP_STEPS=1",
            ]
        )
        == 0
    )
    assert "random weights" not in capsys.readouterr().out


def test_one_config_is_not_for_both_scripts(files, tmp_path, capsys):
    shown = refused_pretraining(capsys, ["--cfg", str(HOME / "cfgs" / "easy_vqa" / "base.yaml")])
    assert "key MODULE: ResNetVLBERT: this config is for vqa/train_end2end.py" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TRAIN__BATCH_IMAGES": [32, 32]}, "an update is made of 32 captions"),
        ({"TRAIN__END_EPOCH": 0}, "key TRAIN.END_EPOCH: 0: must be positive"),
        (
            {"FINETUNE_STRATEGY": "SpotTune"},
            "key FINETUNE_STRATEGY: SpotTune: pretraining trains all",
        ),
        (
            {"TRAIN__WARMUP_STEPS": 99},
            "key TRAIN.WARMUP_STEPS: 99: the training set gives 8 updates",
        ),
        (
            {"NETWORK__VLBERT__from_scratch": False},
            "NETWORK.VLBERT.from_scratch=true starts it from",
        ),
        ({"NETWORK__PARTIAL_PRETRAIN": "nowhere.model"}, "nowhere.model"),
    ],
)
def test_what_cannot_be_trained_is_one_error(files, tmp_path, capsys, changes, message):
    assert message in refused_pretraining(capsys, files.flags(tmp_path, **changes))


def test_the_script_without_its_files_names_them_and_the_embedded_data(tmp_path):
    done = subprocess.run(
        [
            "bash",
            "scripts/nondist_run.sh",
            "pretrain/train_end2end.py",
            "cfgs/pretrain/base_prec_4x16G_fp32.yaml",
            str(tmp_path),
        ],
        cwd=HOME,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done.stderr
    for name in ("train_frcnn.json", "val_frcnn.zip", "bc1g.doc", "wiki.doc"):
        assert (
            done.stderr.count(f"{name}  from https") + done.stderr.count(f"{name}  from BookCorpus")
            == 1
        )
    assert "cfgs/pretrain/easy_vqa_small.yaml" in done.stderr


def test_a_folder_that_another_run_uses_is_left_alone(files, tmp_path, capsys):
    words = files.flags(tmp_path)
    refused_while_in_use(
        capsys, {"train": (main, words), "resume": (main, [*words, "--resume"])}, out(tmp_path)
    )
