"""What the commands refuse: one line, exit status 2, the value and the way out."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from common.training.checkpoint import save_checkpoint
from common.training.weights import load_weights
from tests.vilbert.runs import SIZES, refused, without, write_bert
from vilbert.finetuning import evaluate, train
from vilbert.pretraining import main as pretrain


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            ["--lr_scheduler", "automatic"],
            ["--lr_scheduler automatic: only mannul is supported: a rate that follows the score"],
        ),
        (["--loss_scale", "128"], ["--loss_scale 128: only 0, dynamic scaling, is there"]),
        (["--fp16"], ["precision fp16 needs a GPU, and this run is on the CPU; use bf16"]),
        (["--freeze", "3"], ["--freeze 3: the text layers are 0 to 2"]),
        (
            ["--strategy", "SpotTun"],
            ["unknown strategy 'SpotTun'. Did you mean SpotTune?", "Valid: standard, Frozen"],
        ),
        (
            ["--policy", "big", "--strategy", "SpotTune"],
            ["unknown policy 'big'; valid: small, published, shared, random:<share>"],
        ),
        (["--policy", "small"], ["--policy small: strategy standard decides nothing"]),
        (
            ["--from_pretrained", "nowhere.bin"],
            ["no checkpoint 'nowhere.bin'", "bert_base_6_layer_6_connect/pytorch_model_9.bin"],
        ),
        (
            ["--from_pretrained", "bert-base-uncased"],
            ["no BERT weights in ", "neither model.safetensors nor pytorch_model.bin"],
        ),
        (["--bert_model", "nowhere"], ["nowhere/vocab.txt is missing"]),
        (["--config_file", "nowhere.json"], ["nowhere.json: no such file; config files are in "]),
        (["--num_train_epochs", "0"], ["--epochs 0: give a number of at least 1"]),
        (["--num_workers", "-1"], ["--workers -1: give a number of at least 0"]),
        (["--learning_rate", "-1"], ["--lr -1.0: give a number of at least 0"]),
        (["--warmup_proportion", "2"], ["--warmup 2.0: give a number from 0 to 1"]),
        (["--gradient_accumulation_steps", "0"], ["--accumulate 0: give a number of at least 1"]),
        (["--dropout", "1.5"], ["--dropout 1.5: give a number from 0 to 1"]),
        (["--optimizer", "SGDD"], ["unknown optimiser 'SGDD'; valid: bert, adamw, adam, adamax"]),
        (["--load", "nowhere/BEST"], ["--load nowhere/BEST --from_pretrained ", "give one"]),
        (["--dataset", "vqa2"], ["unknown data set 'vqa2'; there are: vqa, vqa_official, vqa_cp"]),
        (["--tasks", "6"], ["--tasks 6: ", "has no task '6'; there are 1 (VQA)"]),
        (
            ["--strategy", "FrozenLayers", "--frozen-layers", "9"],
            ["unknown layers 9; valid: 1..7 or lang.1, connection.1, vision.1, lang.2"],
        ),
        (
            ["--strategy", "LastK"],
            ["LastK needs to know how many layers: --trainable-layers last:4"],
        ),
        (
            ["--policy-eval", "global", "--global-k", "8", "--strategy", "BlockDrop"],
            ["--global-k 8: the model has 7 live decisions"],
        ),
        (
            ["--strategy", "BlockDrop", "--constrain-k", "8"],
            ["a budget of K = 8 decisions: the model has 7 live ones"],
        ),
        (["--questions", "999"], ["--questions 999: there are", "in train,nominival of vqa"]),
        (["--baseline"], ["not a ViLBERT of these sizes: ", "--config_file"]),
        (["--seeds", "0"], ["--seeds 0: give a number of at least 1"]),
        (["--gpus", "zero"], ["GPUs 'zero': give different numbers separated by commas"]),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_error_with_the_way_out(
    files, tmp_path, capsys, given, parts
):
    shown = refused(capsys, files.run(tmp_path / "run", *given))
    for part in parts:
        assert part in shown
    assert not (tmp_path / "run" / "LAST.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--num_train_epochs", "1.5"], "'1.5': give a whole number of epochs"),
        (["--num_train_epochs", "inf"], "'inf': give a whole number of epochs"),
        (["--policy_layers", "1,1"], "'1,1': give three numbers of layers, such as 2,1,1"),
        (["--local_rank", "x"], "--local_rank/--local-rank: invalid int value: 'x'"),
        (["--nonsense", "1"], "unrecognized arguments: --nonsense 1"),
    ],
)
def test_a_word_that_no_flag_takes_ends_with_the_usage(files, tmp_path, capsys, given, said):
    with pytest.raises(SystemExit) as ended:
        train(files.run(tmp_path, *given))
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 4}, "16 tensors do not fit, e.g. bert.encoder.layer.3."),
        ({"v_hidden_size": 20}, "tensors do not fit, e.g. bert.v_embeddings."),
        ({"hidden_sizes": 4}, "key 'hidden_sizes' is unknown: did you mean 'hidden_size'?"),
        ({"num_hidden_layers": 2**31}, "key num_hidden_layers: 2147483648: give at most 1000"),
        ({"v_biattention_id": [0]}, "1 and 2 places"),
        ({"dynamic_attention": True}, "key dynamic_attention: True: this network of the 12-in-1"),
    ],
)
def test_a_config_that_does_not_fit_names_the_file(files, tmp_path, capsys, changes, said):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(SIZES | changes))
    shown = refused(capsys, files.run(tmp_path / "run", "--config_file", str(path)))
    assert said in shown and (str(path) in shown or str(files.pretrained) in shown)


def test_a_bert_of_other_sizes_is_refused_with_both_shapes(own_files, tmp_path, capsys):
    write_bert(own_files)
    config = tmp_path / "wide.json"
    config.write_text(json.dumps(SIZES | {"hidden_size": 32}))
    run = own_files.run(tmp_path / "run", "--from_pretrained", str(own_files.bert))
    shown = refused(capsys, [*run, "--config_file", str(config)])
    assert f"{own_files.bert / 'pytorch_model.bin'} does not fit the model" in shown
    assert "(117, 16) in the file, (117, 32) in the model" in shown


def test_a_pretrained_file_of_other_features_or_words_is_refused(own_files, tmp_path, capsys):
    """A file of ours remembers them; as many words of another vocabulary would be misread."""
    path = own_files.folder / "ours.safetensors"
    weights = {
        n: x for n, x in load_weights(own_files.pretrained).items() if "decoder.weight" not in n
    }
    for meta, said in (
        ({"vocabulary": {"count": 117, "sha256": "a"}}, "vocabulary.sha256 is 'a' in the file"),
        ({"features": {"width": 2048, "detector": "mine"}}, "features.detector is 'mine' in the"),
    ):
        save_checkpoint(path, {"model": weights}, meta)
        run = own_files.run(tmp_path / "run", "--from_pretrained", str(path))
        shown = refused(capsys, run)
        assert f"{path}: made with other settings: " in shown and said in shown


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_file_of_weights_with_code_inside_is_refused(files, tmp_path, capsys):
    path = tmp_path / "pytorch_model_9.bin"
    torch.save({"bert.embeddings.LayerNorm.bias": Bomb(f"touch {tmp_path / 'ran'}")}, path)
    for command, words in (
        (train, files.run(tmp_path / "run", "--from_pretrained", str(path))),
        (train, without(files.run(tmp_path / "run", "--load", str(path)), "--from_pretrained")),
        (evaluate, files.test(path, tmp_path / "out", "--config_file", str(files.config))),
    ):
        shown = refused(capsys, words, command)
        assert f"{path}: refused" in shown and "nothing was executed" in shown
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 300])
def test_a_truncated_file_of_weights_is_refused(files, tmp_path, capsys, size):
    path = tmp_path / "pytorch_model_9.bin"
    path.write_bytes(files.pretrained.read_bytes()[:size])
    shown = refused(capsys, files.run(tmp_path / "run", "--from_pretrained", str(path)))
    assert str(path) in shown


@pytest.mark.parametrize("command", [train, evaluate, pretrain])
def test_help_explains_the_flags(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--config_file FILE" in shown and "--gpus" in shown
    assert "local_rank" not in shown and "use_chunk" not in shown
