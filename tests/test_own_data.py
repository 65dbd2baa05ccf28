"""Data sets of one's own in every backbone, through the commands: trained, tested, asked about."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from common.ask.command import main as ask
from common.data.datasets import load_split, resolve_dataset
from common.own_data.making import make
from common.runs.opened_run import open_run, training_questions
from common.training.checkpoint import load_meta
from lxrt.finetuning import main as lxmert
from tests.common.detector.files import write_detector
from tests.common.own_data.files import found_in, options, questions, write_csv, write_shapes
from tests.common.refusals import error_of
from tests.vilbert.runs import SIZES
from tests.vlbert.coco_files import WORDS
from tests.vlbert.runs import HOME, write_config
from vilbert.finetuning import evaluate, train
from vilbert.heads import BertForMultiModalPreTraining
from vilbert.sizes import read_config
from vlbert.finetuning import main as vlbert
from vlbert.testing import main as predict

COUNT, QUIET = 40, ["--gpus", "cpu", "--quiet"]
SHORT = ["--strategy", "SpotTune_Block", "--policy-training", "published", "--epochs", "1"]
SMALL, BASE = "shapes", "regions"
DETECTOR_WIDTH = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository folder with `shapes`, of pixel regions, and `regions`, of a random detector."""
    folder = write_shapes(tmp_path_factory.mktemp("own"), COUNT)
    make(options(folder, test=0.2, valid=0.2), folder)
    detector = write_detector(folder / "frcnn")
    table = write_csv(folder / "regions.csv", questions(16))
    make(options(folder, BASE, table=table, detector=str(detector), valid=0.2), folder)
    return folder


@pytest.fixture(autouse=True)
def found_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_in(monkeypatch, root)


@dataclass(frozen=True)
class Started:
    """How a backbone is started.

    Attributes:
        train, test: commands.
        run: words of a short run on a data set into a folder.
        folder: of the run.
        tested: words of a test of a split.
        predictions: its file.
    """

    train: Callable[[list[str]], int]
    test: Callable[[list[str]], int]
    run: Callable[[str, Path, Path], list[str]]
    folder: Callable[[Path], Path]
    tested: Callable[[str, Path, Path, str], list[str]]
    predictions: str


def lxmert_run(name: str, files: Path, out: Path) -> list[str]:
    small, random = ["--loadLXMERTQA", "default"], ["--size", "small", "--fromScratch"]
    more = ["--no-plots", "--batchSize", "16", "--output", str(out)]
    start = small if name == SMALL else random  # the first is what vqa_finetune.bash says
    return ["--dataset", name, *start, *SHORT, *QUIET, *more]


def vlbert_config(name: str, files: Path) -> Path:
    """The shipped one, or a tiny one that stands on it."""
    if name == SMALL:
        return HOME / "cfgs" / "own" / "small.yaml"
    files.mkdir(exist_ok=True)
    (files / "bert").mkdir(exist_ok=True)
    (files / "bert" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tiny: dict[str, Any] = {"DATASET": {}, "NETWORK__PARTIAL_PRETRAIN": ""}
    tiny["NETWORK__VLBERT__from_scratch"] = True
    return write_config(files, "own/base.yaml", **tiny)


def vlbert_run(name: str, files: Path, out: Path) -> list[str]:
    start = ["--cfg", str(vlbert_config(name, files)), "--dataset", name, "--model-dir", str(out)]
    return [*start, "--name", "run", *SHORT, *QUIET, "--no-plots"]


def vilbert_run(name: str, files: Path, out: Path) -> list[str]:
    start = []
    if name != SMALL:
        (files / "bert").mkdir(parents=True)
        (files / "bert" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        sizes, weights = files / "tiny.json", files / "weights.bin"
        sizes.write_text(json.dumps(SIZES))
        pretrained = read_config(sizes, v_feature_size=DETECTOR_WIDTH, vocab_size=len(WORDS))
        torch.save(BertForMultiModalPreTraining(pretrained).state_dict(), weights)
        start = ["--config_file", str(sizes), "--bert_model", str(files / "bert")]
        start += ["--from_pretrained", str(weights)]
    more = ["--no-plots", "--batchSize", "16", "--output", str(out)]
    return ["--tasks", "1", "--dataset", name, *start, *SHORT, *QUIET, *more]


BACKBONES = {
    "lxmert": Started(
        lxmert,
        lxmert,
        lxmert_run,
        lambda out: out,
        lambda name, files, out, split: [
            *("--dataset", name, "--load", str(out / "BEST"), "--test", split),
            *("--output", str(out), *QUIET),
        ],
        "{}_predict.json",
    ),
    "vlbert": Started(
        vlbert,
        predict,
        vlbert_run,
        lambda out: next(out.glob("output/vl-bert/*/run/train_train")),
        lambda name, files, out, split: [
            *("--cfg", str(vlbert_config(name, files)), "--dataset", name),
            *("--model-dir", str(out), "--name", "run", "--split", split, *QUIET),
        ],
        "*_vqa2_{}.json",
    ),
    "vilbert": Started(
        train,
        evaluate,
        vilbert_run,
        lambda out: out,
        lambda name, files, out, split: [
            *(
                "--tasks",
                "1",
                "--dataset",
                name,
                "--from_pretrained",
                str(out / "BEST.safetensors"),
            ),
            *("--output", str(out), "--split", split, *QUIET),
        ],
        "{}_result.json",
    ),
}


@pytest.mark.parametrize("name", [SMALL, BASE])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_is_trained_tested_and_asked_about(
    backbone: str, name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, files, out = BACKBONES[backbone], tmp_path / "files", tmp_path / "out"
    assert start.train(start.run(name, files, out)) == 0, capsys.readouterr().err
    folder, dataset = start.folder(out), resolve_dataset(name, root)
    result = json.loads((folder / "result.json").read_text())
    assert result["dataset"] == name
    assert result["accuracy"]["val"]["count"] == len(load_split(dataset, "valid"))
    meta = load_meta(folder / "BEST.safetensors")
    features = dataset.folder / "features"
    told = json.loads((features / "meta.json").read_text())
    assert meta["features"]["detector"] == told["detector"]
    assert meta["answers"]["count"] == len(dataset.vocabulary())
    if name == SMALL:
        assert meta["size"] == "small" and result["accuracy"]["val"]["overall"] > 50
    if backbone == "vlbert":
        assert result["recipe"]["warmup"] == 0.1, "a share, for any number of questions"
    trained = training_questions(open_run(folder))
    assert {e.image_id for e in trained.examples} <= {
        e.image_id for e in load_split(dataset, "train")
    }

    split = "test" if name == SMALL else "valid"
    capsys.readouterr()
    assert start.test(start.tested(name, files, out, split)) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"{split} of {name}, SpotTune_Block: overall" in shown
    (predicted,) = folder.glob(start.predictions.format(split))
    asked = load_split(dataset, split)
    rows = json.loads(predicted.read_text())
    assert {row["question_id"] for row in rows} == {e.question_id for e in asked}

    given = ["--run", str(folder), "--image-id", asked[0].image_id]
    told_as = tmp_path / "answer.json"
    given += ["--question", asked[0].question, "--out", str(tmp_path / "asked.png")]
    assert ask([*given, "--json", str(told_as)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "no picture of" not in shown and (tmp_path / "asked.png").is_file()
    answer = json.loads(told_as.read_text())
    best = json.dumps(answer)
    assert next(r["answer"] for r in rows if r["question_id"] == asked[0].question_id) in best


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_must_not_be_trained_on_is_refused(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = BACKBONES[backbone]
    words = start.run(SMALL, tmp_path / "files", tmp_path / "out")
    if backbone == "vlbert":
        more = ["--set", "DATASET.TRAIN_IMAGE_SET=train+test"]
    else:
        more = ["--train", "train,test"]
    assert "test of shapes is there to report on" in " ".join(
        error_of(capsys, start.train, [*words, *more]).split()
    ).replace("test: this set", "test").replace("split test of", "test of")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_unknown_name_is_refused_with_those_that_there_are(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = BACKBONES[backbone]
    words = start.run(SMALL, tmp_path / "files", tmp_path / "out")
    words[words.index(SMALL)] = "shape"
    said = error_of(capsys, start.train, words)
    assert "'shape'" in said and "regions, shapes; " in said


def test_a_config_of_one_s_own_data_needs_a_name_and_has_no_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = vlbert_run(SMALL, tmp_path / "files", tmp_path / "out")
    place = words.index("--dataset")
    unnamed = [*words[:place], *words[place + 2 :]]
    assert "DATASET.DATASET: is empty: name a data set" in error_of(capsys, vlbert, unnamed)
    pictures = [*words, "--set", "NETWORK.IMAGE_FEAT_PRECOMPUTED=false"]
    assert "only region features are read" in error_of(capsys, vlbert, pictures)
    other = [str(HOME / "cfgs/easy_vqa/base.yaml") if "small.yaml" in w else w for w in words]
    assert "split nominival of shapes: it has train, valid, test" in (
        error_of(capsys, vlbert, other)
    )
