"""A run that an earlier version began: it goes on; its best model is tested, opened, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LxmertConfig as HFConfig
from transformers import LxmertForQuestionAnswering

from common.export import main as export
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint
from common.training.weights import load_weights
from lxrt.finetuning import main
from tests.conftest import EARLIER
from tests.lxmert.runs import score_of_predictions

RUN = EARLIER / "lxmert"
STEPS, VALIDATION = 8, 36.0  # of the whole run; accuracy of its best epoch, in percent


@pytest.fixture
def begun(vqa_data: Path, answers: list[str], tmp_path: Path) -> list[str]:
    """The earlier run in `tmp_path/run`, and the flags that it was begun with.

    The weights that it started from are not needed any more, only their sizes are.
    """
    shutil.copytree(RUN, tmp_path / "run")
    start = tmp_path / "start"
    words = (RUN / "vocab.txt").read_text()
    LxmertForQuestionAnswering(
        HFConfig(
            vocab_size=len(words.split()),
            hidden_size=12,
            num_attention_heads=3,
            intermediate_size=16,
            l_layers=1,
            x_layers=1,
            r_layers=1,
            visual_feat_dim=2048,
            max_position_embeddings=22,
            num_qa_labels=len(answers),
            id2label=dict(enumerate(answers)),
            label2id={answer: place for place, answer in enumerate(answers)},
        )
    ).save_pretrained(start)
    (start / "vocab.txt").write_text(words)
    words = "--questions 64 --batchSize 16 --lr 1e-2 --epochs 2 --strategy SpotTune_Block"
    data = ["--dataset", "vqa", "--data", str(vqa_data), "--loadLXMERTQA", str(start)]
    more = ["--gpus", "cpu", "--dropout", "0.2", "--quiet", "--no-plots", "--no-tensorboard"]
    return [*data, *words.split(), *more, "--output", str(tmp_path / "run")]


def test_it_ends_with_the_weights_that_the_earlier_version_gave_it(begun, tmp_path, capsys):
    assert main([*begun, "--resume"]) == 0
    assert f"resumed at step 5 of {STEPS}" in capsys.readouterr().out
    found = load_checkpoint(tmp_path / "run" / "LAST.safetensors")[0]
    assert found["progress"]["step"] == STEPS
    expected = load_weights(RUN / "END.safetensors")
    assert found["model"].keys() == expected.keys()
    for name, value in expected.items():  # bit for bit on the processor that computed them
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"]["val"]["overall"] == pytest.approx(VALIDATION, abs=1.1)


def test_its_best_model_is_tested_opened_and_exported(begun, vqa_data, tmp_path):
    load = ["--load", str(tmp_path / "run" / "BEST"), "--test", "minival"]
    data = ["--dataset", "vqa", "--data", str(vqa_data), "--gpus", "cpu", "--quiet"]
    assert main([*data, *load, "--output", str(tmp_path)]) == 0
    found = score_of_predictions(tmp_path / "minival_predict.json", vqa_data)
    assert found["overall"] == pytest.approx(VALIDATION, abs=1.1)
    run = open_run(tmp_path / "run")
    assert run.strategy.name == "SpotTune_Block" and run.adaptive.decision_names[0] == "lang.1"
    assert main([*begun, "--resume"]) == 0  # to its end: then its training questions are known
    assert export(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "plain")]) == 0
    assert load_checkpoint(tmp_path / "plain" / "model.safetensors")[1]["strategy"] == "standard"
