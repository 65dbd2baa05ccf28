"""Finetuned runs of ViLBERT opened and asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from common.ask.answering import ask
from common.ask.command import main as ask_command
from common.ask.image import find_image
from common.attention import main as attention
from common.features.lmdb_records import lmdb_store
from common.features.store import RegionFeatures
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint
from tests.common.attended import blocks_by_kind, check_places, mass
from tests.common.own_detector import check_asked, check_commands
from tests.lxmert.runs import strict_json
from tests.vilbert.runs import SIDES, VAL, refused, write_bert
from vilbert.finetuning import evaluate, train


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    """A run whose answers differ between questions."""
    out = tmp_path_factory.mktemp("spottune")
    rates = ("--learning_rate", "2e-2", "--policy-lr", "2e-2", "--epochs", "3")
    assert train(files.run(out, "--strategy", "SpotTune", *rates)) == 0
    return out


def test_the_best_answers_are_what_the_evaluation_of_the_run_predicts(trained, files, tmp_path):
    """With the places of regions as shares of the image, and the image as a whole."""
    assert evaluate(files.test(trained / "BEST", tmp_path, "--split", "val")) == 0
    predicted = {
        row["question_id"]: row["answer"] for row in strict_json(tmp_path / "val_others.json")
    }
    run, store = open_run(trained), RegionFeatures.open(lmdb_store(files.features))
    given = {}
    for image in VAL:
        for n, side in enumerate(SIDES):
            found = ask(run, store.get(str(image)), f"what is {side} of it?", top=8)
            given[10 * image + n] = [answer.text for answer in found.answers]
    assert given == predicted
    assert len({tuple(answers) for answers in given.values()}) > 1


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("standard", ()),
        ("LastK", ("--trainable-layers", "last:2")),
        ("SpotTune_Res", ()),
        ("BlockReplace", ()),
        ("SpotTune_Block", ("--policy", "published", "--policy_layers", "1,1,1")),
        ("BlockDrop", ("--policy", "random:0.3")),
        ("SpotTune_Block", ("--policy", "shared")),
    ],
)
def test_a_run_of_any_strategy_is_rebuilt_from_its_folder(files, tmp_path, strategy, more):
    run = files.run(tmp_path, "--strategy", strategy, *more, "--questions", "16")
    assert train(run) == 0
    opened = open_run(tmp_path)
    saved = load_checkpoint(tmp_path / "BEST.safetensors")[0]["model"]
    torch.testing.assert_close(dict(opened.model.state_dict()), saved, rtol=0, atol=0)
    assert not opened.model.training


def test_the_single_stream_baseline_is_asked_too(own_files, tmp_path):
    write_bert(own_files)
    run = ["--baseline", "--from_pretrained", str(own_files.bert), "--questions", "16"]
    assert train(own_files.run(tmp_path / "run", *run)) == 0
    store = RegionFeatures.open(lmdb_store(own_files.features))
    found = ask(open_run(tmp_path / "run"), store.get("200"), "what is left of it?")
    assert len(found.answers) > 1 and found.decisions is None
    opened, regions = open_run(tmp_path / "run"), store.get("200")
    check_places(opened, regions, "what is left of it?", "left", "right")
    blocks = blocks_by_kind(opened, regions, "what is left of it?")
    assert len(blocks) == 4, "words and regions attend to both in one stream"
    assert float((mass(blocks, "text", "layer.1") - 1).abs().max()) < 1e-5


def test_the_ask_command_shows_answers_decisions_and_a_picture(trained, files, capsys):
    words = ["--run", str(trained), "--features", str(lmdb_store(files.features))]
    words += ["--image-id", "200", "--question", "what is left of it?"]
    assert ask_command(words) == 0
    shown = capsys.readouterr().out
    assert "SpotTune · ViLBERT" in shown
    assert "lang.1" in shown and "connection.2" in shown and "vision.2" in shown
    assert list((trained / "ask").glob("*.png"))
    shown = refused(capsys, [*words[:-3], "9999", *words[-2:]], ask_command)
    assert "9999" in shown


def test_attention_is_shown_between_words_and_regions(trained, files, capsys, tmp_path):
    run, store = open_run(trained), RegionFeatures.open(lmdb_store(files.features))
    regions, question = store.get("200"), "what is left of it?"
    check_places(run, regions, question, "left", "right")
    found = blocks_by_kind(run, regions, question)
    assert {kinds: set(of) for kinds, of in found.items()} == {
        ("text", "text"): {"lang.1", "lang.2", "lang.3"},
        ("region", "region"): {"vision.1", "vision.2"},
        ("text", "region"): {"connection.1", "connection.2"},
        ("region", "text"): {"connection.1", "connection.2"},
    }
    keys = found["text", "region"]["connection.1"].keys
    assert [place.name for place in keys][:2] == ["image", "1"] and keys[0].region is None
    words = ["--run", str(trained), "--features", str(lmdb_store(files.features))]
    words += ["--image-id", "200", "--question", question, "--out", str(tmp_path / "a.png")]
    assert ask_command([*words, "--attention", "connection.1:2", "--word", "left"]) == 0
    assert "attention of connection.1, head 2: text → region" in capsys.readouterr().out
    shown = refused(capsys, [*words, "--attention", "cross.1"], ask_command)
    assert "lang.1, " in shown and "connection.2" in shown
    over = ["--run", str(trained), "--samples", "3", "--out", str(tmp_path)]
    assert attention(over) == 0
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "a.png",
        "zeros.png",
        "above.png",
        "entropy.png",
    }


def test_a_run_on_embedded_images_is_asked_about_a_picture(
    easy_vqa_root, tmp_path, monkeypatch, capsys
):
    """Its regions are found in the pixels; the same answers come from the stored features."""
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    out, folder = tmp_path / "run", easy_vqa_root / "data" / "easy_vqa"
    run = ["--dataset", "easy_vqa", "--questions", "32", "--epochs", "1", "--gpus", "cpu"]
    run += ["--quiet", "--no-plots", "--no-tensorboard", "--strategy", "BlockDrop"]
    assert train([*run, "--output", str(out)]) == 0
    picture = sorted((folder / "images" / "test").glob("*.png"))[0]
    opened, question = open_run(out), "What color is the shape?"
    of_file = ask(opened, find_image(opened, picture, None).regions, question, top=13)
    stored = find_image(opened, None, picture.stem, folder / "features").regions
    of_record = ask(opened, stored, question, top=13)
    assert [vars(a) for a in of_file.answers] == [vars(a) for a in of_record.answers]
    assert ask_command(["--run", str(out), "--image", str(picture), "--question", question]) == 0
    assert of_file.answers[0].text in capsys.readouterr().out


def test_an_image_of_the_task_s_own_data_is_found_by_its_id(trained, files, capsys, tmp_path):
    """Where the run found its features, and not where other backbones have theirs."""
    words = ["--run", str(trained), "--image-id", str(VAL[0]), "--question", "what is left of it?"]
    assert ask_command([*words, "--out", str(tmp_path / "a.png")]) == 0
    assert f"image     {VAL[0]}," in capsys.readouterr().out.replace(" (", ",")


def test_a_picture_is_asked_about_by_the_detector_of_the_run(trained, tmp_path):
    check_asked(trained, "what is left of it?", tmp_path)


def test_weights_of_another_detector_are_refused_or_taken(trained, files, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    best = tmp_path / "run" / "BEST.safetensors"
    check_commands(evaluate, files.test(best, tmp_path / "out"), best, capsys)
