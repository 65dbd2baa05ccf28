"""A run that an earlier version began: it goes on; its best model is tested, opened, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.export import main as export
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint
from common.training.weights import load_weights
from tests.conftest import EARLIER
from tests.vlbert.runs import FOLDER, flags, write_config, write_training_data
from tests.vlbert.test_resume_and_scripts import DROPOUT
from vlbert.finetuning import main
from vlbert.testing import main as predict

RUN = EARLIER / "vlbert"
STEPS, VALIDATION = 10, 50.0  # of the whole run; accuracy of its best epoch, in percent


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The earlier run below `parts`, and the flags that it was begun with."""
    coco = tmp_path / "coco"
    coco.mkdir()
    write_training_data(coco)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RUN, tmp_path / "parts" / FOLDER)
    config = write_config(
        coco,
        **DROPOUT,
        TRAIN__AUTO_RESUME=True,
        NETWORK__PARTIAL_PRETRAIN="coco/vl-bert-tiny-prec.model",
        NETWORK__BERT_MODEL_NAME="coco/bert",
    )
    return flags(config, Path("parts"), "--no-tensorboard")


def test_it_ends_with_the_weights_that_the_earlier_version_gave_it(begun, tmp_path, capsys):
    assert main(begun) == 0
    assert f"resumed at step 5 of {STEPS}" in capsys.readouterr().out
    found = load_checkpoint(tmp_path / "parts" / FOLDER / "LAST.safetensors")[0]
    assert found["progress"]["step"] == STEPS
    expected = load_weights(RUN / "END.safetensors")
    assert found["model"].keys() == expected.keys()
    for name, value in expected.items():  # bit for bit on the processor that computed them
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    result = json.loads((tmp_path / "parts" / FOLDER / "result.json").read_text())
    assert result["accuracy"]["val"]["overall"] == VALIDATION


def test_its_best_model_is_tested_opened_and_exported(begun, tmp_path, capsys):
    cfg = ["--cfg", "coco/tiny.yaml", "--model-dir", "parts", "--gpus", "cpu", "--quiet"]
    assert predict([*cfg, "--split", "val2014", "--result-path", str(tmp_path)]) == 0
    assert f"overall {VALIDATION:.2f}" in capsys.readouterr().out
    run = open_run(Path("parts") / FOLDER)
    assert run.strategy.name == "SpotTune_Block" and len(run.adaptive.decision_names) == 2
    assert main(begun) == 0  # to its end: then its training questions are known
    assert export(["--run", f"parts/{FOLDER}", "--out", str(tmp_path / "plain")]) == 0
    assert load_checkpoint(tmp_path / "plain" / "model.safetensors")[1]["strategy"] == "standard"
