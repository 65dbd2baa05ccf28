"""vqa/train_end2end.py and vqa/test.py on small data in the official formats."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from common.training.checkpoint import load_checkpoint, load_meta
from common.training.weights import load_weights
from tests.common.on_gpu import everything_on_gpu, same_learning, without_dropout
from tests.common.recording import recording
from tests.vlbert.coco_files import ANSWERS
from tests.vlbert.runs import FOLDER, HOME, TESTED, VAL, flags, result_of, write_config
from vlbert.building import checkpoint_path
from vlbert.config import load_config
from vlbert.config_adaptive import adaptive_settings
from vlbert.finetuning import main
from vlbert.testing import main as predict
from vlbert.testing import parser
from vlbert.testing import test_options as options_of_test

STRATEGIES = (
    "standard",
    "pretrained_frozen",
    "last_1",
    "specific_k",
    "SpotTune_Block",
    "SpotTune_Res",
    "SpotTune",
    "BlockDrop",
    "BlockReplace",
)


@pytest.fixture(scope="module")
def config(coco: Path) -> Path:
    return write_config(coco)


@pytest.fixture(scope="module")
def spottune(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SpotTune run of two epochs."""
    out = tmp_path_factory.mktemp("spottune")
    assert main(flags(config, out, "--strategy", "SpotTune", "--epochs", "2")) == 0
    return out


def test_a_run_leaves_its_files_where_the_original_puts_them(spottune, config):
    folder = spottune / FOLDER
    names = {path.name for path in folder.iterdir()}
    assert {
        "BEST.safetensors",
        "LAST.safetensors",
        "result.json",
        "tiny.yaml",
        "vocab.txt",
        "answers.json",
        "tensorboard_logs",
    } <= names
    prefix = load_config(config).MODEL_PREFIX
    assert {f"{prefix}-0000.safetensors", f"{prefix}-0001.safetensors"} <= names
    log = next(folder.glob("tiny_*-*-*-*-*.log")).read_text()
    assert "Epoch[1] \tVal-SoftAcc=" in log and "Best Val SoftAcc: " in log
    assert list((folder / "tensorboard_logs").glob("events.*"))
    kept = load_config(folder / "tiny.yaml")
    assert kept.FINETUNE_STRATEGY == "SpotTune" and kept.TRAIN.END_EPOCH == 2


def test_the_log_says_every_few_updates_how_training_goes(config, tmp_path):
    assert main(flags(config, tmp_path, "--set", "LOG_FREQUENT=2")) == 0
    log = next((tmp_path / FOLDER).glob("*.log")).read_text()
    steps = re.findall(
        r"^epoch 0, step (\d+) of 5: answer \d+\.\d+; .*learning rate main \S+; "
        r"\d+ samples a second$",
        log,
        re.MULTILINE,
    )
    assert steps == ["2", "4"]


def test_result_and_checkpoint_say_what_was_trained(spottune):
    result = result_of(spottune)
    assert (result["backbone"], result["strategy"], result["dataset"]) == (
        "vlbert",
        "SpotTune",
        "vqa",
    )
    assert len(result["decisions"]["share"]) == 2 * (2 + 3)
    assert all(result["decisions"]["live"])
    assert result["accuracy"]["val"]["count"] == 2 * len(VAL)
    assert result["accuracy"]["val"]["number"] is None
    held = result["selection"]
    assert "held out" in held and "val2014" not in held
    meta = load_meta(spottune / FOLDER / "BEST.safetensors")
    assert meta["keys"]["TRAIN"]["END_EPOCH"] == 2 and meta["backbone"] == "vlbert"


def test_testing_the_best_epoch_gives_its_accuracy_again(spottune, config, tmp_path, capsys):
    """The strategy is the checkpoint's; PREFIX-best is the name that the original gives it."""
    prefix = load_config(config).MODEL_PREFIX
    best = spottune / FOLDER / f"{prefix}-best.model"
    assert (
        predict(
            [
                "--cfg",
                str(config),
                "--ckpt",
                str(best),
                "--gpus",
                "cpu",
                "--split",
                "val2014",
                "--result-path",
                str(tmp_path),
                "--quiet",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    found = result_of(spottune)["accuracy"]["val"]
    assert f"SpotTune: overall {found['overall']:.2f}, yes/no {found['yes/no']:.2f}" in shown
    assert len(json.loads((tmp_path / "tiny_vqa2_val2014.json").read_text())) == 2 * len(VAL)


@pytest.mark.parametrize(("split", "count"), [("test2015", 8), ("test-dev2015", 4)])
def test_test_splits_give_a_file_that_evalai_takes(spottune, config, tmp_path, split, count):
    assert (
        predict(
            [
                "--cfg",
                str(config),
                "--model-dir",
                str(spottune),
                "--split",
                split,
                "--gpus",
                "cpu",
                "--result-path",
                str(tmp_path),
                "--result-name",
                "mine",
                "--bs",
                "3",
                "--quiet",
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / f"mine_vqa2_{split}.json").read_text())
    assert len(rows) == count
    for row in rows:
        assert row.keys() == {"question_id", "answer"}
        assert row["question_id"] // 10 in TESTED and row["answer"] in ANSWERS


@pytest.mark.parametrize("named", [".", "{prefix}-0001.model", "{prefix}-best.model"])
def test_a_checkpoint_may_be_named_as_the_original_does(spottune, config, tmp_path, named):
    name = spottune / FOLDER / named.format(prefix=load_config(config).MODEL_PREFIX)
    assert checkpoint_path(name).suffix == ".safetensors"


def test_another_name_is_not_taken_for_the_best_epoch(spottune):
    with pytest.raises(CheckpointError, match="nobody-best"):
        checkpoint_path(spottune / FOLDER / "nobody-best.model")


def test_the_whole_checkpoint_is_used_for_testing(spottune, config, tmp_path):
    """Other weights in the file give other predictions; else the file would not be read."""
    folder = tmp_path / FOLDER
    shutil.copytree(spottune / FOLDER, folder)
    from common.training.checkpoint import save_checkpoint

    state, meta = load_checkpoint(folder / "BEST.safetensors")
    state["model"]["final_mlp.2.bias"][4] = 1e4
    save_checkpoint(folder / "BEST.safetensors", state, meta)
    assert (
        predict(["--cfg", str(config), "--model-dir", str(tmp_path), "--gpus", "cpu", "--quiet"])
        == 0
    )
    rows = json.loads((folder / "tiny_vqa2_test2015.json").read_text())
    assert {row["answer"] for row in rows} == {ANSWERS[4]}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_what_it_should(config, coco, tmp_path, strategy):
    assert main(flags(config, tmp_path, "--strategy", strategy, "--no-tensorboard")) == 0
    result = result_of(tmp_path)
    started = load_weights(coco / "vl-bert-tiny-prec.model")
    state = load_checkpoint(tmp_path / FOLDER / "LAST.safetensors")[0]["model"]
    name = "vlbert.encoder.layer.{}.output.dense.weight"
    changed = [
        not torch.equal(state[name.format(layer)], started["module." + name.format(layer)])
        for layer in (0, 1)
    ]
    frozen = {"pretrained_frozen": (0, 1), "last_1": (0,), "specific_k": (0,)}.get(strategy, ())
    assert changed == [layer not in frozen for layer in (0, 1)]
    # What surrounds the layers is trained by every strategy.
    assert not torch.equal(
        state["vlbert.word_embeddings.weight"], started["module.vlbert.word_embeddings.weight"]
    )
    assert result["variant"] == ", ".join(
        filter(None, ["2 layers", {"last_1": "last 1", "specific_k": "frozen 1"}.get(strategy)])
    )
    decisions = {
        "SpotTune_Block": 2,
        "SpotTune_Res": 4,
        "SpotTune": 10,
        "BlockDrop": 2,
        "BlockReplace": 2,
    }.get(strategy)
    found = result["decisions"]
    assert (None if found is None else len(found["share"])) == decisions
    if strategy.startswith("SpotTune"):
        twins = [
            key
            for key in state
            if ".adaptive.twins." in key
            and key.endswith("output.dense.weight")
            and "attention" not in key
        ]
        assert len(twins) == 2
        for key in twins:
            assert any(
                torch.equal(state[key], started["module." + name.format(layer)]) for layer in (0, 1)
            ), f"{key} is not the pretrained weight"


def test_plain_strategies_save_exactly_the_names_of_the_original(config, tmp_path):
    assert main(flags(config, tmp_path, "--no-tensorboard")) == 0
    names = set(load_weights(tmp_path / FOLDER / "BEST.safetensors"))
    layer = "vlbert.encoder.layer.1.attention.self.query.weight"
    assert {
        layer,
        "final_mlp.0.dense.weight",
        "final_mlp.2.bias",
        "object_linguistic_embeddings.weight",
        "image_feature_extractor.obj_downsample.1.weight",
    } <= names
    assert len(names) == 211 - 10 * 16  # the base model's, with 2 layers of 12


@pytest.mark.parametrize(
    ("changes", "keys"),
    [({"POLICY_GLOBAL_DECISION": True}, ()), ({}, ("--policy-eval", "global", "--global-k", "1"))],
)
def test_a_global_decision_is_one_for_all_questions(coco, tmp_path, changes, keys):
    config = write_config(coco, **changes)
    assert (
        main(
            flags(
                config,
                tmp_path,
                "--strategy",
                "BlockDrop",
                "--constrain-k",
                "1",
                "--no-tensorboard",
                *keys,
            )
        )
        == 0
    )
    result = result_of(tmp_path)
    assert result["policy_eval"] == "global" and result["variant"] == "2 layers, K = 1, global"
    assert set(result["decisions"]["share"]) <= {0.0, 1.0}
    if keys:
        assert sum(result["decisions"]["share"]) == 1
    out = tmp_path / "answers"
    assert (
        predict(
            [
                "--cfg",
                str(config),
                "--model-dir",
                str(tmp_path),
                "--gpus",
                "cpu",
                "--split",
                "val2014",
                "--result-path",
                str(out),
                "--policy-eval",
                "global",
                "--quiet",
            ]
        )
        == 0
    )


def test_a_run_is_tested_with_the_decisions_that_it_was_evaluated_with(coco, tmp_path):
    """A global decision of the training command, which the config of the test does not name."""
    config = write_config(coco, POLICY__LR=3e-2, TRAIN__END_EPOCH=3, TRAIN__LR=2.5e-3)
    assert (
        main(
            flags(
                config,
                tmp_path,
                "--strategy",
                "BlockDrop",
                "--policy-eval",
                "global",
                "--global-k",
                "0",
                "--no-tensorboard",
            )
        )
        == 0
    )
    found = []
    for more in (
        (),
        ("--policy-eval", "global"),
        ("--policy-eval", "argmax"),
        ("--set", "POLICY.EVALUATION=argmax", "POLICY_GLOBAL_DECISION=false"),
    ):
        found.append(probe_evaluation(config, tmp_path, *more))
    assert found == ["global", "global", "argmax", "argmax"]


def probe_evaluation(config: Path, out: Path, *more: str) -> str:
    """How vqa/test.py lets the model of a run decide."""
    args = parser().parse_args(["--cfg", str(config), "--model-dir", str(out), *more])
    return adaptive_settings(options_of_test(args, "").config).options.policy_eval


def test_a_run_that_max_steps_ended_is_not_tested(config, tmp_path):
    assert (
        main(
            flags(
                config,
                tmp_path,
                "--do-test",
                "--epochs",
                "2",
                "--max-steps",
                "6",
                "--no-tensorboard",
            )
        )
        == 0
    )
    assert (tmp_path / FOLDER / "BEST.safetensors").exists()  # of the first epoch
    assert not list((tmp_path / FOLDER).glob("tiny_vqa2_*.json"))


def test_a_finetuned_run_starts_another_one_and_the_log_says_what_is_not_taken(
    spottune, config, tmp_path, capsys
):
    best = spottune / FOLDER / "BEST.safetensors"
    for name, rows in (("rows", "true"), ("kept", "false")):
        assert (
            main(
                flags(
                    config,
                    tmp_path,
                    "--name",
                    name,
                    "--partial-pretrain",
                    str(best),
                    "--set",
                    "TRAIN.LR=0",
                    f"NETWORK.CLASSIFIER_PRETRAINED={rows}",
                    "--no-tensorboard",
                )
            )
            == 0
        )
        shown = capsys.readouterr().out
        assert ("final_mlp.2.weight is not used" in shown) == (name == "rows")
        state = load_weights(tmp_path / FOLDER.replace("tiny", name) / "LAST.safetensors")
        started = load_weights(best)
        layer = "vlbert.encoder.layer.1.output.dense.weight"
        assert torch.equal(state[layer], started[layer])
        assert torch.equal(state["final_mlp.2.weight"], started["final_mlp.2.weight"]) == (
            name == "kept"
        )


def test_keys_of_the_policy_without_effect_are_said(coco, tmp_path, capsys):
    config = write_config(
        coco,
        POLICY__CLASSIFIER_TYPE="2fc",
        POLICY__PARTIAL_PRETRAIN="x.model",
        POLICY__NETWORK="published",
    )
    assert (
        main(
            flags(
                config,
                tmp_path,
                "--strategy",
                "SpotTune_Block",
                "--max-steps",
                "1",
                "--no-tensorboard",
            )
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "note: POLICY.CLASSIFIER_TYPE 2fc has no effect" in shown
    assert "note: POLICY.PARTIAL_PRETRAIN x.model has no effect" in shown


@pytest.mark.parametrize("wanted", [0, 2])
def test_the_constrain_k_loss_of_a_config_moves_the_number_of_kept_blocks(coco, tmp_path, wanted):
    config = write_config(
        coco,
        USE_CONSTRAIN_K_LOSS=True,
        CONSTRAIN_K_NUM_BLOCKS=wanted,
        CONSTRAIN_K_SCALE=50.0,
        FINETUNE_STRATEGY="BlockDrop",
        USE_DETERMINISTIC_POLICY_LOSS=True,
        POLICY__LR=2e-2,
        TRAIN__END_EPOCH=8,
    )
    assert main(flags(config, tmp_path, "--no-tensorboard")) == 0
    result = result_of(tmp_path)
    assert sum(result["decisions"]["share"]) == pytest.approx(wanted, abs=0.5)
    assert {"constrain_k", "deterministic"} <= set(result["epochs"][0]["train_losses"])


def test_flags_and_set_change_the_config(config, coco, tmp_path):
    assert (
        main(
            flags(
                config,
                tmp_path,
                "--name",
                "other",
                "--set",
                "TRAIN.BATCH_IMAGES=2",
                "TRAIN.LR=5e-4",
                "--accumulate",
                "2",
                "--seed",
                "3",
                "--questions",
                "8",
                "--policy",
                "published",
                "--strategy",
                "SpotTune_Block",
            )
        )
        == 0
    )
    result = result_of(tmp_path, FOLDER.replace("tiny", "other"))
    assert result["recipe"]["batch_size"] == 4  # 2 images x 2 micro-batches
    assert result["recipe"]["lr"] == pytest.approx(4 * 5e-4)
    assert (result["seed"], result["policy"], result["name"]) == (3, "published", "other")
    assert result["accuracy"]["train"]["count"] == 8
    assert result["decisions"]["count"] == 2 * len(VAL)


def test_a_shortened_run_warms_up_over_the_same_share_of_its_updates(coco, tmp_path):
    config = write_config(coco, TRAIN__WARMUP_STEPS=2, TRAIN__END_EPOCH=2)
    for name, more in (("whole", ()), ("short", ("--questions", "8", "--epochs", "1"))):
        assert main(flags(config, tmp_path, "--name", name, "--no-tensorboard", *more)) == 0
    whole, short = (
        result_of(tmp_path, FOLDER.replace("tiny", name)) for name in ("whole", "short")
    )
    updates = 2 * (whole["accuracy"]["train"]["count"] // 4)
    assert whole["recipe"]["warmup"] == short["recipe"]["warmup"] == pytest.approx(2 / updates)


def test_learning_rates_of_parts_of_the_model_can_be_multiplied(coco, tmp_path):
    config = write_config(
        coco, TRAIN__LR_MULT=[["final_mlp", 0.0], ["vlbert.", 0.5]], TRAIN__WD=0.0
    )
    assert main(flags(config, tmp_path, "--no-tensorboard")) == 0
    state = load_checkpoint(tmp_path / FOLDER / "LAST.safetensors")[0]
    rates = state["optimizers"]["main"]["base_lrs"]
    assert rates[1:] == pytest.approx([0.0, rates[0] / 2])
    started = load_weights(coco / "vl-bert-tiny-prec.model")
    prefix = "module.vlbert.mlm_head.predictions.transform."
    assert torch.equal(state["model"]["final_mlp.0.dense.weight"], started[prefix + "dense.weight"])


def test_answers_start_from_the_word_embeddings(config, coco, tmp_path):
    """CLASSIFIER_PRETRAINED, with a learning rate of 0."""
    assert main(flags(config, tmp_path, "--set", "TRAIN.LR=0", "--no-tensorboard")) == 0
    state = load_checkpoint(tmp_path / FOLDER / "LAST.safetensors")[0]["model"]
    words = load_weights(coco / "vl-bert-tiny-prec.model")["module.vlbert.word_embeddings.weight"]
    assert torch.equal(state["final_mlp.2.weight"][ANSWERS.index("red")], words[10])
    assert torch.equal(state["final_mlp.2.weight"][ANSWERS.index("left")], words[7])


def test_vqa_cp_chooses_the_best_epoch_on_a_part_of_train(coco, tmp_path):
    for part, other in (("train", "train2014"), ("test", "val2014")):
        rows = json.loads(
            (coco / "vqa" / f"v2_OpenEnded_mscoco_{other}_questions.json").read_text()
        )["questions"]
        answers = json.loads((coco / "vqa" / f"v2_mscoco_{other}_annotations.json").read_text())[
            "annotations"
        ]
        for kind, listed in (("questions", rows), ("annotations", answers)):
            text = json.dumps([row | {"coco_split": other} for row in listed])
            (coco / "vqa" / f"vqacp_v2_{part}_{kind}.json").write_text(text)
    config = write_config(coco, "vqa_cp/base_4x16G_fp32.yaml")
    assert main(flags(config, tmp_path, "--strategy", "SpotTune_Block", "--do-test")) == 0
    folder = next(tmp_path.rglob("result.json")).parent
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert folder.name == "train_train" and result["dataset"] == "vqa_cp"
    assert result["selection"].startswith("40 % of the training images held out")
    trained = result["accuracy"]["train"]["count"]
    assert trained < 36 and result["accuracy"]["val"]["count"] == 12
    assert list(folder.glob("tiny_vqa2_*.json"))


def test_training_on_what_is_validated_on_is_said(coco, tmp_path, capsys):
    config = write_config(coco, DATASET__TRAIN_IMAGE_SET="train2014+val2014")
    assert main(flags(config, tmp_path, "--no-tensorboard")) == 0
    shown = capsys.readouterr().out
    assert "12 of 12 questions of val2014 are in the training set train2014+val2014" in shown


def test_the_shipped_configs_train_on_train2014_alone():
    for path in sorted((HOME / "cfgs" / "vqa").glob("*.yaml")):
        assert load_config(path).DATASET.TRAIN_IMAGE_SET == "train2014", path


def test_the_passes_of_a_run_are_recorded(config, tmp_path, monkeypatch, capsys):
    """With more padding, so that masks of dropout are others than those of a run without."""
    recorder = recording(monkeypatch)
    run = ["--strategy", "SpotTune_Block", "--executor", "grouped", "--epochs", "2"]
    assert main(flags(config, tmp_path, *run)) == 0
    assert recorder.repeats >= 4
    said = [line for line in capsys.readouterr().out.splitlines() if "not recorded" in line]
    assert all("executor gathered takes samples apart" in line for line in said)  # on the CPU


@pytest.mark.parametrize("policy", ["small", "published"])
def test_batches_as_for_a_gpu_teach_the_same(coco, tmp_path, policy):
    """Features in half precision, fixed lengths, evaluation batches that grow where that is asked
    for."""
    config, results = write_config(coco), []
    for name, device in (("cpu", without_dropout), ("gpu", everything_on_gpu)):
        more = ("--strategy", "SpotTune_Res", "--policy", policy, "--eval-batch-size", "auto")
        with device():
            assert main(flags(config, tmp_path / name, *more)) == 0
        results.append(result_of(tmp_path / name))
        (log,) = (tmp_path / name / FOLDER).glob("tiny_*.log")
        assert ("evaluation in batches of" in log.read_text()) == (name == "gpu")
    same_learning(*reversed(results))
