"""A run that an earlier version began: it goes on; its best model is tested, opened, exported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from common.export import main as export
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint
from common.training.weights import load_weights
from tests.conftest import EARLIER
from tests.vilbert.runs import DROPOUT_RUN, LAYERS, TaskFiles
from vilbert.finetuning import evaluate, train

RUN = EARLIER / "vilbert"
STEPS, VALIDATION = 6, 6.25  # of the whole run; accuracy of its best epoch, in percent


@pytest.fixture
def begun(files: TaskFiles, tmp_path: Path) -> list[str]:
    """The earlier run in `tmp_path/run`, and the flags that it was begun with."""
    shutil.copytree(RUN, tmp_path / "run")
    return files.run(tmp_path / "run", *DROPOUT_RUN)


def test_it_ends_with_the_weights_that_the_earlier_version_gave_it(begun, tmp_path, capsys):
    assert train([*begun, "--resume"]) == 0
    assert f"resumed at step 4 of {STEPS}" in capsys.readouterr().out
    found = load_checkpoint(tmp_path / "run" / "LAST.safetensors")[0]
    assert found["progress"]["step"] == STEPS
    expected = load_weights(RUN / "END.safetensors")
    assert found["model"].keys() == expected.keys()
    for name, value in expected.items():  # bit for bit on the processor that computed them
        # Softmax does not see the bias of keys: its gradient is rounding, made large by Adam.
        if re.search(r"key\d?\.bias$", name):
            continue
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"]["val"]["overall"] == VALIDATION


def test_its_best_model_is_tested_opened_and_exported(files, begun, tmp_path, capsys):
    assert evaluate(files.test(tmp_path / "run" / "BEST", tmp_path / "test")) == 0
    assert f"overall {VALIDATION:.2f}" in capsys.readouterr().out
    run = open_run(tmp_path / "run")
    assert run.strategy.name == "SpotTune_Block" and len(run.adaptive.decision_names) == len(LAYERS)
    assert train([*begun, "--resume"]) == 0  # to its end: then its training questions are known
    assert export(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "plain")]) == 0
    assert load_checkpoint(tmp_path / "plain" / "model.safetensors")[1]["strategy"] == "standard"
